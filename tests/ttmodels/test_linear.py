import copy

import pytest
import torch

from tests.tolerances import CONTRACTION
from ttmodels.contraction import Plan
from ttmodels.linear import TTLinear


def test_it_is_a_linear_layer_with_the_full_weight() -> None:
    layer = TTLinear((4, 5, 6), (3, 2, 4), 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 7, 120)
    want = torch.nn.functional.linear(x, layer.full().T, layer.bias)
    assert torch.allclose(layer(x), want, atol=CONTRACTION)
    assert layer.full().shape == (120, 24)


def test_a_given_plan_is_used() -> None:
    plan = Plan((1, 2), "left_to_right")
    layer = TTLinear((4, 5, 6), (3, 2, 4), 3, plan=plan)
    assert layer.plan_for(1) == layer.plan_for(10_000) == plan
    with pytest.raises(ValueError, match="is for 2 cores"):
        TTLinear((4, 5, 6), (3, 2, 4), 3, plan=Plan((1, 1)))


def test_glorot_is_the_default_scale() -> None:
    weight = TTLinear((8, 20, 20, 18), (4, 4, 4, 4), 4).full().detach()
    assert float(weight.std()) == pytest.approx((2 / (57600 + 256)) ** 0.5, rel=0.05)


def test_state_and_copies_round_trip() -> None:
    layer, other = TTLinear((4, 5), (3, 2), 2), TTLinear((4, 5), (3, 2), 2)
    x = torch.randn(3, 20)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_no_side_effects_on_construction(capsys: pytest.CaptureFixture[str]) -> None:
    modes = [4, 5]
    torch.manual_seed(1)
    torch.rand(1)
    TTLinear(modes, [2, 2], [2])
    assert modes == [4, 5]
    assert capsys.readouterr().out == ""


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected inputs \[..., 20\] .* got \[3, 21\]"):
        TTLinear((4, 5), (3, 2), 2)(torch.zeros(3, 21))

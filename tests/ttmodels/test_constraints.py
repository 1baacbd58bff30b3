"""Constraints hold after every step of an optimiser; penalties are what their formulas say."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.tolerances import BOUND, CONTRACTION
from ttmodels.constraints import MaxNorm, NonNegative, Penalty
from ttmodels.linear import TTLinear
from ttmodels.recurrent import TTGRU

CONSTRAINTS = {"non_negative": NonNegative, "max_norm": lambda: MaxNorm(0.5)}
EACH = pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=list(CONSTRAINTS))


def train(layer: nn.Module, x: torch.Tensor, target: torch.Tensor, *, num_steps: int = 20, rate: float = 0.1) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()


def fibres(core: torch.Tensor) -> torch.Tensor:
    """The norm of what leads into each output (m, r') of a core [r, n, m, r']."""
    return core.detach().double().square().sum((0, 1)).sqrt()


def test_non_negative_holds_after_training_towards_negative_values() -> None:
    layer = TTLinear((4, 5), (3, 2), 2, kernel_constraint=NonNegative)
    before = layer.full().detach()
    train(layer, torch.rand(8, 20), -torch.ones(8, 6))
    assert all(bool((core >= 0).all()) for core in layer.cores)
    assert bool((layer.full() >= 0).all())
    assert not torch.equal(layer.full(), before)


def test_non_negative_weights_that_are_zero_can_rise() -> None:
    """About half of the values drawn are negative; where those stay 0 for ever, half of the layer never learns."""
    layer = TTLinear((4, 5), (3, 2), 2, bias=False, kernel_constraint=NonNegative)
    zero = [(core == 0).detach().clone() for core in layer.cores]
    train(layer, torch.rand(8, 20), 10 * torch.ones(8, 6), num_steps=50)
    for core, was_zero in zip(layer.cores, zero, strict=True):
        assert not bool(was_zero.any()) or bool((core[was_zero] > 0).any())


@pytest.mark.parametrize("limit", [0.2, 1.0])
def test_max_norm_holds_after_training_towards_large_values(limit: float) -> None:
    x, target = torch.randn(8, 20), 100 * torch.randn(8, 6)
    free, bound = TTLinear((4, 5), (3, 2), 2), TTLinear((4, 5), (3, 2), 2, kernel_constraint=lambda: MaxNorm(limit))
    train(free, x, target)
    train(bound, x, target)
    assert max(float(fibres(core).max()) for core in free.cores) > 1.5 * limit
    for core in bound.cores:
        assert float(fibres(core).max()) <= limit * (1 + BOUND)
    assert max(float(fibres(core).max()) for core in bound.cores) == pytest.approx(limit, rel=BOUND)


def test_max_norm_shortens_the_long_and_leaves_the_short() -> None:
    weight = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    got = MaxNorm(1.0, dim=(0,))(weight)
    assert torch.allclose(got, torch.tensor([[0.6, 0.3], [0.8, 0.4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_max_norm_of_zeros_has_finite_values_and_gradients(dtype: torch.dtype, limit: float) -> None:
    weight = torch.zeros(2, 3, 2, 2, dtype=dtype, requires_grad=True)
    got = MaxNorm(limit)(weight)
    got.sum().backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(got).all())
    assert bool(torch.isfinite(weight.grad).all())


@EACH
def test_state_and_copies_round_trip(constraint: Callable[[], nn.Module]) -> None:
    layer, other = (TTLinear((4, 5), (3, 2), 2, kernel_constraint=constraint) for _ in range(2))
    x = torch.randn(3, 20)
    train(layer, x, torch.randn(3, 6))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    before = layer(x).detach()
    train(twin, x, torch.randn(3, 6))
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)


@EACH
def test_new_values_pass_through_the_constraint(constraint: Callable[[], nn.Module]) -> None:
    layer = TTLinear((4, 5), (3, 2), 2, kernel_constraint=constraint)
    values = [torch.randn_like(core) for core in layer.cores]
    layer.set_cores(values)
    for core, value in zip(layer.cores, values, strict=True):
        assert torch.allclose(core, constraint()(value), atol=CONTRACTION)
    before = layer.full().detach()
    layer.reset_parameters()
    assert not torch.equal(layer.full(), before)


@EACH
def test_every_parameter_of_a_constrained_layer_is_trained(constraint: Callable[[], nn.Module]) -> None:
    layer = TTLinear((4, 5), (3, 2), 2, kernel_constraint=constraint)
    layer(torch.randn(3, 20)).square().sum().backward()
    assert len(list(layer.parameters())) == 3
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layer.parameters())


def test_a_network_passes_constraints_on() -> None:
    net = TTGRU((4, 5), (3, 2), 2, num_layers=2, kernel_constraint=NonNegative)
    assert all(bool((cell.projection.full() >= 0).all()) for cell in net.cells)
    output, _ = net(torch.randn(3, 2, 20))
    output.sum().backward()


def test_a_limit_that_is_no_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit: expected a positive norm, got 0\.0"):
        MaxNorm(0.0)


def test_penalty_is_its_formula() -> None:
    values = torch.tensor([1.0, -2.0, 3.0])
    assert float(Penalty(l1=0.5)(values)) == 3.0
    assert float(Penalty(l2=0.5)(values)) == 7.0
    assert float(Penalty(l1=1.0, l2=0.1)(values)) == pytest.approx(7.4)
    assert float(Penalty()(values)) == 0.0


@pytest.mark.parametrize("values", [{"l1": -0.1}, {"l2": -0.1}])
def test_a_negative_penalty_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 0, got l1=.* l2="):
        Penalty(**values)

"""TTLinear against x @ full(cores) + b, and each of its options against what it should change."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.tolerances import CONTRACTION, DOUBLE, FROM_TORCH
from ttmodels import contraction
from ttmodels.constraints import NonNegative, Penalty
from ttmodels.contraction import Plan, all_plans
from ttmodels.linear import TTLinear, penalty
from ttmodels.tensor_train import TTShape, full

GRID = [
    ((6,), (5,), None),
    ((4, 5), (3, 2), 1),
    ((7, 11), (5, 3), None),
    ((2, 3, 5), (7, 2, 3), None),
    ((4, 6, 5, 9), (2, 3, 4, 2), 3),
    ((2, 3, 2, 3, 2), (1, 4, 1, 2, 1), (2, 5, 3, 2)),
    ((2, 3, 2, 1, 2, 3), (2, 1, 2, 3, 1, 2), 3),
    ((3, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 3), None),
]


@pytest.mark.parametrize("rows", [(7,), (1,), (), (0,), (2, 7), (2, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(("n", "m", "ranks"), GRID, ids=str)
def test_it_is_a_linear_layer_with_the_full_weight(n: Any, m: Any, ranks: Any, rows: tuple[int, ...]) -> None:
    layer = TTLinear(n, m, ranks, bias_initialiser=nn.init.normal_, dtype=torch.double)
    assert layer.full().shape == (math.prod(n), math.prod(m)) == (layer.in_features, layer.out_features)
    x = torch.randn(*rows, layer.in_features, dtype=torch.double)
    want = nn.functional.linear(x, layer.full().T, layer.bias)
    got = layer(x)
    assert got.shape == want.shape
    got, want = got.detach(), want.detach()
    assert float((got - want).norm()) <= DOUBLE * max(float(want.norm()), 1)


def test_float32_agrees_too() -> None:
    layer = TTLinear((4, 5, 6), (3, 2, 4), 3)
    x = torch.randn(2, 7, 120)
    assert torch.allclose(layer(x), x @ layer.full(), atol=CONTRACTION)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("n", "m", "ranks"), [((5,), (3,), None), ((2, 3), (3, 2), 2), ((2, 2, 2), (2, 1, 2), 2)])
def test_gradcheck(n: Any, m: Any, ranks: Any, rows: int) -> None:
    layer = TTLinear(n, m, ranks, activation="tanh", bias_initialiser=nn.init.normal_, dtype=torch.double)
    x = torch.randn(rows, layer.in_features, dtype=torch.double, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


def test_an_empty_batch_has_gradients_of_zero() -> None:
    layer = TTLinear((4, 5), (3, 2), 2)
    layer(torch.zeros(0, 20)).sum().backward()
    assert all(p.grad is not None and not bool(p.grad.any()) for p in layer.parameters())


# ---- options


def layer_with(**options: Any) -> TTLinear:
    torch.manual_seed(1)
    return TTLinear((4, 5), (3, 2), 2, **options)


CHANGES: dict[str, Any] = {
    "bias": True,
    "activation": "tanh",
    "kernel_initialiser": "he_uniform",
    "bias_initialiser": nn.init.ones_,
    "kernel_constraint": NonNegative,
    "num_gates": 3,
    "dtype": torch.float64,
}
PENALTIES = ("kernel_penalty", "bias_penalty", "activity_penalty")
SHOWN_BELOW = ("plan", "device")


def test_every_option_is_tested() -> None:
    keywords = [p.name for p in inspect.signature(TTLinear).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(keywords) == sorted([*CHANGES, *PENALTIES, *SHOWN_BELOW])


@pytest.mark.parametrize("option", CHANGES)
def test_the_option_changes_the_output(option: str) -> None:
    common = {} if option != "bias" else {"bias_initialiser": nn.init.ones_}
    default = {"bias": False} if option == "bias" else {}
    plain, changed = layer_with(**common, **default), layer_with(**common, **{option: CHANGES[option]})
    x = torch.randn(3, 20)
    got = changed(x.to(changed.cores[0].dtype))
    assert got.dtype != torch.float32 or not torch.allclose(plain(x), got)


def test_without_bias_there_is_none() -> None:
    layer = TTLinear((4, 5), (3, 2), 2, bias=False)
    assert layer.bias is None
    assert len(list(layer.parameters())) == 2
    assert bool((layer(torch.zeros(1, 20)) == 0).all())


@pytest.mark.parametrize("activation", ["relu", "tanh", "hard_sigmoid", torch.cos], ids=str)
def test_the_activation_comes_last(activation: Any) -> None:
    plain, layer = layer_with(), layer_with(activation=activation)
    functions = {"relu": torch.relu, "tanh": torch.tanh, "hard_sigmoid": lambda y: (0.2 * y + 0.5).clamp(0, 1)}
    y = plain(5 * torch.randn(3, 20, generator=torch.Generator().manual_seed(2)))
    got = layer(5 * torch.randn(3, 20, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(got, functions.get(activation, activation)(y))


def test_the_bias_starts_at_zero_or_as_asked() -> None:
    assert not bool(layer_with().bias.any())
    layer = layer_with(bias_initialiser=lambda bias: nn.init.constant_(bias, 3))
    assert layer.bias.tolist() == [3] * 6
    with torch.no_grad():
        layer.bias.zero_()
    layer.reset_parameters()
    assert layer.bias.tolist() == [3] * 6


def test_reset_draws_new_values_of_the_same_scale() -> None:
    layer = TTLinear((8, 8), (8, 8), 4)
    before = layer.full().detach()
    layer.reset_parameters()
    after = layer.full().detach()
    assert not torch.allclose(before, after)
    assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-3)


@pytest.mark.parametrize("plan", [*all_plans(3), None], ids=str)
def test_a_given_plan_is_used(plan: Plan | None) -> None:
    """To the last bit: another plan sums in another order."""
    layer = TTLinear((4, 5, 6), (3, 2, 4), 3, bias=False, plan=plan)
    x = torch.randn(7, 120)
    assert torch.equal(layer(x), contraction.apply(x, list(layer.cores), layer.plan_for(7), layer.shape))
    if plan is not None:
        assert layer.plan_for(1) == layer.plan_for(10_000) == plan
        assert f"{plan.groups} {plan.direction}" in layer.summary()


def test_the_plan_may_be_changed() -> None:
    layer = TTLinear((4, 5, 6), (3, 2, 4), 3, bias=False)
    x = torch.randn(7, 120)
    for plan in (Plan((1, 2)), Plan((3,)), None):
        layer.plan = plan
        assert torch.equal(layer(x), contraction.apply(x, list(layer.cores), layer.plan_for(7), layer.shape))
        assert layer.plan_for(1) == plan or plan is None
        assert (layer._onnx_route.plan == plan) == (plan is not None)
    with pytest.raises(ValueError, match=r"plan \(1, 1\) is for 2 cores, expected 3"):
        layer.plan = Plan((1, 1))


def test_the_plan_is_chosen_for_the_rows_at_hand() -> None:
    layer = TTLinear((16, 15, 15, 16), (4, 4, 4, 4), 16)
    assert len({layer.plan_for(rows) for rows in (1, 16, 256, 4096)}) > 1


def test_device_and_dtype() -> None:
    layer = TTLinear((4, 5), (3, 2), 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.zeros(3, 20, device="meta", dtype=torch.bfloat16)).shape == (3, 6)


# ---- penalties


def test_no_penalty_is_zero() -> None:
    assert layer_with().penalty().item() == 0


def test_kernel_penalty_is_that_of_the_dense_matrix() -> None:
    layer = layer_with(kernel_penalty=Penalty(l2=0.3), dtype=torch.double)
    got = torch.autograd.grad(layer.penalty(), list(layer.cores))
    assert layer.penalty().item() == pytest.approx(0.3 * layer.full().square().sum().item(), rel=DOUBLE)
    want = torch.autograd.grad(0.3 * layer.full().square().sum(), list(layer.cores))
    assert all(torch.allclose(mine, theirs, atol=DOUBLE) for mine, theirs in zip(got, want, strict=True))


def test_the_l1_of_a_kernel_is_that_of_its_cores() -> None:
    layer = layer_with(kernel_penalty=Penalty(l1=0.3, l2=0.1))
    want = 0.3 * sum(core.abs().sum() for core in layer.cores) + 0.1 * layer.full().square().sum()
    assert torch.allclose(layer.penalty(), want)


def test_a_penalty_is_of_the_constrained_cores() -> None:
    layer = layer_with(kernel_penalty=Penalty(l1=1.0, l2=1.0), kernel_constraint=NonNegative)
    cores = [core.detach() for core in layer.cores]
    want = sum(core.sum() for core in cores) + full(cores).square().sum()
    assert torch.allclose(layer.penalty(), want)


def test_bias_penalty() -> None:
    layer = layer_with(bias_penalty=Penalty(l1=0.5, l2=0.1), bias_initialiser=lambda b: nn.init.constant_(b, -2))
    assert layer.penalty().item() == pytest.approx(6 * (0.5 * 2 + 0.1 * 4))
    assert layer_with(bias=False, bias_penalty=Penalty(l2=1.0)).penalty().item() == 0


def test_activity_penalty_is_the_mean_over_the_rows_and_only_in_training() -> None:
    layer = layer_with(activity_penalty=Penalty(l1=0.5, l2=0.1), activation="tanh")
    y = layer(torch.randn(2, 5, 20))
    want = (0.5 * y.abs().sum() + 0.1 * y.square().sum()) / 10
    assert torch.allclose(layer.penalty(), want)
    layer.penalty().backward()
    assert all(bool(core.grad.abs().sum() > 0) for core in layer.cores)
    layer.eval()
    layer(torch.randn(2, 5, 20))
    assert layer.penalty().item() == 0


def test_activity_penalty_of_an_empty_batch_is_zero() -> None:
    layer = layer_with(activity_penalty=Penalty(l1=0.5), plan=Plan((2,)))
    layer(torch.zeros(0, 20))
    assert layer.penalty().item() == 0


def test_the_penalty_of_a_network_is_the_sum_of_its_layers() -> None:
    first = TTLinear((4, 5), (3, 2), 2, kernel_penalty=Penalty(l2=1.0))
    second = TTLinear((3, 2), (2, 2), 2, kernel_penalty=Penalty(l2=0.5))
    net = nn.Sequential(first, nn.ReLU(), nn.Sequential(second, nn.Linear(4, 1)))
    assert torch.allclose(penalty(net), first.full().square().sum() + 0.5 * second.full().square().sum())
    assert penalty(nn.Linear(2, 2)).item() == 0


def test_training_with_a_penalty_makes_weights_smaller() -> None:
    norms = []
    for strength in (0.0, 1.0):
        layer = layer_with(kernel_penalty=Penalty(l2=strength))
        x, target = torch.randn(16, 20), torch.randn(16, 6)
        optimizer = torch.optim.Adam(layer.parameters(), 0.02)
        for _ in range(30):
            optimizer.zero_grad()
            ((layer(x) - target).square().mean() + layer.penalty()).backward()
            optimizer.step()
        norms.append(float(layer.full().detach().norm()))
    assert norms[1] < 0.5 * norms[0]


# ---- from cores and from torch


def test_from_cores_copies() -> None:
    source = TTLinear((4, 5), (3, 2), 2, dtype=torch.double, bias_initialiser=nn.init.normal_)
    layer = TTLinear.from_cores(list(source.cores), source.bias)
    assert layer.shape == source.shape
    x = torch.randn(3, 20, dtype=torch.double)
    assert torch.equal(layer(x), source(x))
    with torch.no_grad():
        for p in source.parameters():
            p.zero_()
    assert bool(layer(x).any())
    assert all(p.requires_grad for p in layer.parameters())


def test_from_cores_takes_ranks_above_use() -> None:
    """A sum of two trains has them, before it is rounded."""
    cores = [torch.randn(1, 2, 2, 10), torch.randn(10, 2, 2, 1)]
    layer = TTLinear.from_cores(cores)
    assert torch.allclose(layer.full(), full(cores), atol=CONTRACTION)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cores_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cores: expected finite values, core 1 holds NaN or infinity"):
        TTLinear.from_cores([torch.ones(1, 2, 2, 2), torch.full((2, 2, 2, 1), value)])


def test_a_bias_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bias: expected shape \[4\], got \[3\]"):
        TTLinear.from_cores([torch.ones(1, 4, 4, 1)], torch.ones(3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("modes", [((24,), (30,)), ((4, 6), (5, 6)), ((2, 3, 4), (5, 2, 3))], ids=str)
def test_from_linear_is_exact_at_full_rank(modes: Any, bias: bool) -> None:
    dense = nn.Linear(24, 30, bias=bias)
    layer = TTLinear.from_linear(dense, *modes)
    x = torch.randn(9, 24)
    assert torch.allclose(layer(x), dense(x), atol=FROM_TORCH)
    assert (layer.bias is None) == (not bias)


def test_the_error_of_from_linear_falls_as_the_rank_rises() -> None:
    dense = nn.Linear(24, 30)
    errors = [
        float((TTLinear.from_linear(dense, (2, 3, 4), (5, 2, 3), rank).full().T - dense.weight).detach().norm())
        for rank in (1, 2, 4, 8, 12)
    ]
    assert errors == sorted(set(errors), reverse=True)
    assert errors[-1] < FROM_TORCH * errors[0]


def test_from_linear_keeps_the_error_asked_for() -> None:
    dense = nn.Linear(64, 64)
    for error in (0.05, 0.3):
        layer = TTLinear.from_linear(dense, (8, 8), (8, 8), relative_error=error)
        assert float(((layer.full().T - dense.weight).norm() / dense.weight.norm()).detach()) <= error
        assert layer.shape.tt_ranks[1] < 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_from_linear_keeps_the_dtype(dtype: torch.dtype) -> None:
    layer = TTLinear.from_linear(nn.Linear(6, 6, dtype=dtype), (2, 3), (3, 2))
    assert {p.dtype for p in layer.parameters()} == {dtype}


def test_modes_that_do_not_fit_the_dense_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a matrix \[24, 6\], got \[25, 6\]"):
        TTLinear.from_linear(nn.Linear(25, 6), (4, 6), (3, 2))


# ---- what it says and leaves alone


def test_summary_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    layer = TTLinear((8, 20, 20, 18), (4, 4, 4, 4), 4)
    text = layer.summary()
    assert capsys.readouterr().out == ""
    for part in (
        "57600 -> 256",
        "(8, 20, 20, 18)",
        "(4, 4, 4, 4)",
        "(1, 4, 4, 4, 1)",
        "1x8x4x4",
        f"{layer.shape.num_parameters + 256:,}",
        f"{layer.shape.compression:,.1f}",
        str(layer.plan_for(64).groups),
    ):
        assert part in text, part


def test_repr_tells_modes_and_ranks() -> None:
    assert "input_modes=(4, 5), output_modes=(3, 2), tt_ranks=(1, 2, 1)" in repr(TTLinear((4, 5), (3, 2), 2))


def test_construction_has_no_side_effects(capsys: pytest.CaptureFixture[str]) -> None:
    modes, outs, ranks = [4, 5], [2, 2], [2]
    torch.manual_seed(1)
    TTLinear(modes, outs, ranks)
    assert (modes, outs, ranks) == ([4, 5], [2, 2], [2])
    assert torch.initial_seed() == 1
    assert capsys.readouterr().out == ""


# ---- what does not fit


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 21), r"expected inputs \[\.\.\., 20\] for input_modes \(4, 5\), got \[3, 21\]"),
        (torch.zeros(20, 3), r"expected inputs \[\.\.\., 20\] .* got \[20, 3\]"),
        (torch.tensor(1.0), r"expected inputs \[\.\.\., 20\] .* got \[\]"),
        (torch.zeros(3, 20, dtype=torch.double), r"expected inputs of torch\.float32, .* got torch\.float64"),
        (torch.zeros(3, 20, dtype=torch.uint8), r"expected inputs of torch\.float32, .* got torch\.uint8"),
        (torch.zeros(3, 20, device="meta"), r"expected inputs on cpu, .* got meta"),
    ],
    ids=str,
)
def test_an_input_that_does_not_fit_is_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTLinear((4, 5), (3, 2), 2)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": Plan((1, 2))}, r"plan \(1, 2\) is for 3 cores, expected 2"),
        ({"activation": "rely"}, r"activation: expected one of linear, .* got 'rely'"),
        ({"kernel_initialiser": "zero"}, r"kernel_initialiser: expected one of .* got 'zero'"),
        ({"tt_ranks": 0}, r"tt_ranks: expected 3 positive ranks, .* got \(1, 0, 1\)"),
        ({"tt_ranks": (2, 2, 2)}, "tt_ranks: expected 3 positive ranks, the first and the last 1"),
        ({"output_modes": (6,)}, r"as many input_modes as output_modes, .* got \(4, 5\) and \(6,\)"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTLinear(**({"input_modes": (4, 5), "output_modes": (3, 2)} | options))


def test_the_shape_is_what_was_asked_for() -> None:
    assert TTLinear((4, 5), (3, 2), 99).shape == TTShape((4, 5), (3, 2), (1, 10, 1))

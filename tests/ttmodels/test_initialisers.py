"""Initial cores, measured on the matrix that they stand for."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerances import ORTHOGONAL, RESCALED, SCALE
from ttmodels.initialisers import NAMES, make_cores, orthogonal_cores, random_cores, zero_cores
from ttmodels.linear import TTLinear
from ttmodels.recurrent import TTGRU
from ttmodels.tensor_train import TTShape, full

MODES = {
    1: ((96,), (64,)),
    2: ((12, 8), (4, 6)),
    3: ((5, 4, 6), (3, 4, 2)),
    4: ((4, 3, 5, 2), (2, 3, 2, 3)),
    5: ((3, 2, 4, 3, 2), (2, 2, 2, 3, 1)),
    6: ((3, 3, 3, 3, 3, 3), (2, 2, 2, 2, 2, 2)),
}
RANKS = (1, 2, 3, 8, 32)
VARIANCES = {"glorot": lambda n, m: 2 / (n + m), "he": lambda n, m: 2 / n, "lecun": lambda n, m: 1 / n}
SCALED = [name for name in NAMES if name.split("_")[0] in VARIANCES]


@pytest.mark.parametrize("d", MODES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", SCALED)
def test_the_matrix_has_the_rules_variance(name: str, rank: int, d: int) -> None:
    """Two cores tell nothing of six: the matrix itself is measured, on every draw."""
    shape = TTShape.make(*MODES[d], rank)
    want = VARIANCES[name.split("_")[0]](shape.in_features, shape.out_features)
    for _ in range(3):
        matrix = full(make_cores(name, shape)).double()
        assert float(matrix.square().mean()) == pytest.approx(want, rel=SCALE)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("d", MODES)
@pytest.mark.parametrize("rank", RANKS)
def test_random_cores_have_exactly_the_asked_scale(d: int, rank: int, uniform: bool) -> None:
    matrix = full(random_cores(TTShape.make(*MODES[d], rank), 0.05, uniform=uniform)).double()
    assert float(matrix.square().mean().sqrt()) == pytest.approx(0.05, rel=RESCALED)


@pytest.mark.parametrize("d", MODES)
@pytest.mark.parametrize("rank", [1, 4])
def test_over_the_seeds_the_mean_is_zero(d: int, rank: int) -> None:
    """Entries of a draw are uncorrelated, so the mean of all has the standard error of independent values."""
    shape = TTShape.make(*MODES[d], rank)
    draws = torch.stack([full(random_cores(shape, 1.0)) for _ in range(60)])
    assert abs(float(draws.mean())) < 5 / math.sqrt(draws.numel())
    assert float(draws.square().mean()) == pytest.approx(1, rel=RESCALED)


@pytest.mark.parametrize("d", MODES)
def test_over_the_seeds_no_row_or_column_stands_out(d: int) -> None:
    shape = TTShape.make(*MODES[d], 8)
    draws = torch.stack([full(random_cores(shape, 1.0)) for _ in range(100)])
    for energy in (draws.square().mean((0, 2)), draws.square().mean((0, 1))):
        assert 0.6 < float(energy.min()) < float(energy.max()) < 1.6


def test_the_default_layer_of_a_frame_has_glorots_scale() -> None:
    weight = TTLinear((8, 20, 20, 18), (4, 4, 4, 4), 4).full().detach()
    assert float(weight.std()) == pytest.approx((2 / (57600 + 256)) ** 0.5, rel=0.05)


def test_one_gate_of_several_is_scaled_as_a_matrix_of_its_own() -> None:
    """Glorot's fan-out is the hidden size and not three times that."""
    weight = TTGRU((6, 8), (4, 4), 4).cells[0].projection.full().detach()
    assert float(weight.square().mean()) == pytest.approx(2 / (48 + 16), rel=RESCALED)


def test_uniform_cores_are_bounded_and_normal_ones_are_not() -> None:
    shape = TTShape.make((20, 20), (20, 20), 10)
    for core in random_cores(shape, 1.0, uniform=True):
        assert float(core.abs().max() / core.square().mean().sqrt()) < math.sqrt(3) * 1.05
    for core in random_cores(shape, 1.0):
        assert float(core.abs().max() / core.square().mean().sqrt()) > 2.5


def test_every_name_makes_another_layer() -> None:
    made = []
    for name in NAMES:
        torch.manual_seed(0)
        made.append(TTLinear((4, 6), (2, 3), 6, kernel_initialiser=name).full().detach())
    for i, one in enumerate(made):
        assert not any(torch.allclose(one, other) for other in made[:i]), NAMES[i]


def test_a_generator_is_used_and_the_global_one_left_alone() -> None:
    shape = TTShape.make((4, 4), (2, 2), 2)
    before = torch.random.get_rng_state()
    for make in (lambda g: random_cores(shape, 1.0, generator=g), lambda g: orthogonal_cores(shape, g)):
        one, other = (make(torch.Generator().manual_seed(3)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- orthogonal

ORTHOGONAL_SHAPES = [
    TTShape.make((5,), (5,)),
    TTShape.make((7,), (3,)),
    TTShape.make((3,), (7,)),
    TTShape.make((4, 4), (4, 4), 1),
    TTShape.make((4, 6), (2, 3), 3),
    TTShape.make((2, 3), (4, 6), 3),
    TTShape.make((2, 6), (3, 3), 2),
    TTShape.make((8, 8, 8), (4, 4, 4), 8),
    TTShape.make((4, 6, 5), (2, 3, 5), 1),
    TTShape.make((4, 4, 4, 4), (4, 4, 4, 4), 6),
    TTShape.make((8, 10, 10, 18), (4, 4, 2, 2), 4),
    TTShape.make((2, 3, 5, 7, 2), (2, 3, 2, 3, 2), 5),
    TTShape.make((3, 3, 3, 3, 3, 3), (2, 2, 2, 2, 2, 2), 4),
    TTShape.make((4, 1, 4), (2, 1, 2), 4),
    TTShape.make((1, 4), (1, 2), 3),
]


@pytest.mark.parametrize("shape", ORTHOGONAL_SHAPES, ids=str)
def test_orthogonal_is_orthogonal(shape: TTShape) -> None:
    matrix = full(orthogonal_cores(shape)).double()
    n, m = matrix.shape
    gram = matrix.T @ matrix if n >= m else matrix @ matrix.T
    assert torch.allclose(gram, torch.eye(min(n, m), dtype=torch.double), atol=ORTHOGONAL)


@pytest.mark.parametrize("shape", ORTHOGONAL_SHAPES, ids=str)
def test_orthogonal_cores_have_the_ranks_asked_for_and_all_of_them_learn(shape: TTShape) -> None:
    """Ranks that the orthogonal matrix does not need wait: after a step or two each slice has a gradient."""
    cores = [core.requires_grad_() for core in orthogonal_cores(shape)]
    assert [tuple(core.shape) for core in cores] == shape.core_shapes
    target = torch.randn(shape.in_features, shape.out_features) / math.sqrt(shape.in_features)
    seen = [torch.zeros_like(core) for core in cores]
    for _ in range(3):
        loss = (full(cores) - target).square().sum()
        for core, total, gradient in zip(cores, seen, torch.autograd.grad(loss, cores), strict=True):
            assert bool(torch.isfinite(gradient).all())
            total += gradient.abs()
            core.data -= 0.01 * gradient
    for total in seen:
        assert bool((total.sum((1, 2, 3)) > 0).all()), "a slice on the left never learns"
        assert bool((total.sum((0, 1, 2)) > 0).all()), "a slice on the right never learns"


def test_ranks_too_low_for_orthogonality_are_refused() -> None:
    message = r"orthogonal: .* input_modes \(2, 6\), output_modes \(3, 3\) and ranks up to \(1, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        TTLinear((2, 6), (3, 3), 1, kernel_initialiser="orthogonal")


# ---- zeros, callables, bad input


@pytest.mark.parametrize("d", MODES)
def test_zeros_stand_for_zero_but_learn(d: int) -> None:
    """The target has another last core, which gradient descent must find; then the others learn too."""
    shape = TTShape.make(*MODES[d], 2)
    cores = [core.requires_grad_() for core in zero_cores(shape)]
    assert bool((full(cores) == 0).all())
    target = full([*cores[:-1], torch.randn(shape.core_shapes[-1])]).detach()
    optimizer = torch.optim.Adam(cores, 0.05)
    losses = []
    for _ in range(12):
        loss = (full(cores) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    assert all(bool(core.grad.abs().sum() > 0) for core in cores)


def test_a_callable_makes_the_cores() -> None:
    def ones(shape: TTShape) -> list[torch.Tensor]:
        return [torch.ones(size) for size in shape.core_shapes]

    layer = TTLinear((4, 5, 2), (3, 2, 2), 2, kernel_initialiser=ones)
    assert bool((layer.full() == 4).all())
    with torch.no_grad():
        layer.cores[0].zero_()
    layer.reset_parameters()
    assert bool((layer.full() == 4).all())


def test_a_callable_that_makes_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_initialiser: expected cores \[\(1, 4, 3, 2\).* got \[\(4, 4\)\]"):
        TTLinear((4, 5), (3, 2), 2, kernel_initialiser=lambda _: [torch.ones(4, 4)])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_initialiser: expected one of glorot_normal, .* got 'glorot'"):
        TTLinear((4, 5), (3, 2), 2, kernel_initialiser="glorot")

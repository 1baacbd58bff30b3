"""The Tensor-Train matrix against its definition, dense linear algebra and two peers' own reconstruction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerances import BOUND, CONTRACTION, DOUBLE
from ttmodels.initialisers import random_cores
from ttmodels.tensor_train import TTShape, clip_ranks, full, inner, merge_pair, squared_norm, tt_round, tt_svd

GRID = [
    TTShape.make((6,), (5,)),
    TTShape.make((4, 5), (3, 2), 1),
    TTShape.make((3, 7), (5, 2)),
    TTShape.make((2, 3, 5), (7, 2, 3), 4),
    TTShape.make((4, 1, 6, 2), (1, 3, 1, 2), (2, 3, 2)),
    TTShape.make((2, 3, 2, 3, 2), (1, 2, 2, 1, 2)),
    TTShape.make((2, 3, 2, 1, 2, 3), (2, 1, 2, 3, 1, 2), 3),
]


def cores_of(shape: TTShape, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [core.double() for core in random_cores(shape, 1.0, generator=generator)]


def close(got: torch.Tensor, want: torch.Tensor, relative: float = DOUBLE) -> bool:
    return float((got - want).norm()) <= relative * float(want.norm())


def sum_of(cores: list[torch.Tensor], others: list[torch.Tensor]) -> list[torch.Tensor]:
    """A train of the sum of two matrices: block-diagonal cores, the ranks added."""
    d = len(cores)
    if d == 1:
        return [cores[0] + others[0]]
    found = []
    for k, (a, b) in enumerate(zip(cores, others, strict=True)):
        r, s = (0 if k == 0 else a.shape[0]), (0 if k == d - 1 else a.shape[3])
        core = a.new_zeros(max(r, 0) + b.shape[0], *a.shape[1:3], s + b.shape[3])
        core[: a.shape[0], :, :, : a.shape[3]] += a
        core[r:, :, :, s:] += b
        found.append(core)
    return found


# ---- what the cores stand for


@pytest.mark.parametrize("shape", [TTShape.make((2, 3, 2), (3, 1, 2), 2), TTShape.make((2, 2), (2, 3))], ids=str)
def test_entries_are_products_of_core_slices(shape: TTShape) -> None:
    """The definition, written out: W[i, j] = G_1[:, i_1, j_1, :] ... G_d[:, i_d, j_d, :]."""
    cores = cores_of(shape)
    matrix = full(cores)
    assert matrix.shape == (shape.in_features, shape.out_features)
    for i, rows in enumerate(torch.cartesian_prod(*map(torch.arange, shape.input_modes)).tolist()):
        for j, columns in enumerate(torch.cartesian_prod(*map(torch.arange, shape.output_modes)).tolist()):
            product = torch.eye(1, dtype=torch.double)
            for core, row, column in zip(cores, rows, columns, strict=True):
                product = product @ core[:, row, column, :]
            assert abs(float(product) - float(matrix[i, j])) < DOUBLE


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_torchtts_reconstruction_of_the_same_cores(shape: TTShape) -> None:
    """torchTT's operators have cores [r, M, N, R] and full() [M_1 .. M_d, N_1 .. N_d]."""
    torchtt = pytest.importorskip("torchtt", exc_type=ImportError)
    cores = cores_of(shape)
    theirs = torchtt.TT(cores)
    assert list(theirs.R) == list(shape.tt_ranks)
    assert close(full(cores), theirs.full().reshape(shape.in_features, shape.out_features))


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_tltorchs_reconstruction_of_the_same_cores(shape: TTShape) -> None:
    """tltorch's BlockTT has factors [r, row, column, R]."""
    tltorch = pytest.importorskip("tltorch", exc_type=ImportError)
    cores = cores_of(shape)
    modes = (shape.input_modes, shape.output_modes)
    theirs = tltorch.BlockTT([torch.nn.Parameter(core) for core in cores], tensorized_shape=modes, rank=shape.tt_ranks)
    assert close(full(cores), theirs.to_matrix().detach())


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_norms_and_inner_products_need_no_matrix(shape: TTShape) -> None:
    cores, others = cores_of(shape, 0), cores_of(shape, 1)
    assert float(squared_norm(cores)) == pytest.approx(float(full(cores).square().sum()), rel=DOUBLE)
    scale = float(full(cores).norm() * full(others).norm())
    assert abs(float(inner(cores, others)) - float((full(cores) * full(others)).sum())) < DOUBLE * scale


def test_the_gradient_of_the_norm_is_the_dense_one() -> None:
    cores = [core.requires_grad_() for core in cores_of(GRID[3])]
    got = torch.autograd.grad(squared_norm(cores), cores)
    want = torch.autograd.grad(full(cores).square().sum(), cores)
    assert all(close(mine, theirs) for mine, theirs in zip(got, want, strict=True))


def test_neighbours_merge_to_a_core_of_the_same_train() -> None:
    cores = cores_of(GRID[3])
    merged = merge_pair(cores[1], cores[2])
    assert merged.shape == (4, 15, 6, 1)
    assert close(full([cores[0], merged]), full(cores))


# ---- TT-SVD


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_tt_svd_is_exact_at_full_rank(shape: TTShape) -> None:
    matrix = torch.randn(shape.in_features, shape.out_features, dtype=torch.double)
    cores = tt_svd(matrix, shape.input_modes, shape.output_modes)
    assert close(full(cores), matrix)
    assert TTShape.of(cores) == TTShape.make(shape.input_modes, shape.output_modes)


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_tt_svd_finds_a_train_of_its_own_ranks(shape: TTShape) -> None:
    matrix = full(cores_of(shape))
    cores = tt_svd(matrix, shape.input_modes, shape.output_modes, shape.tt_ranks)
    assert close(full(cores), matrix)
    found = TTShape.of(tt_svd(matrix, shape.input_modes, shape.output_modes, relative_error=1e-10))
    assert found == shape


def test_tt_svd_of_two_cores_is_the_best_of_its_rank() -> None:
    """With two cores the error is that of a truncated SVD of the interleaved matrix (Eckart-Young)."""
    matrix, rank = torch.randn(20, 20), 5
    cores = tt_svd(matrix, (4, 5), (5, 4), rank)
    interleaved = matrix.reshape(4, 5, 5, 4).transpose(1, 2).reshape(20, 20)
    best = torch.linalg.svdvals(interleaved)[rank:].norm()
    assert float((full(cores) - matrix).norm()) == pytest.approx(float(best), rel=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    modes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    relative_error=st.floats(0.001, 0.95),
    decay=st.floats(0.1, 3.0),
    rank=st.one_of(st.none(), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_tt_svd_and_tt_round_keep_their_bounds(
    modes: list[tuple[int, int]], relative_error: float, decay: float, rank: int | None, seed: int
) -> None:
    """On matrices whose singular values fall as k^-decay: the error bound is kept where the ranks allow any, the rank
    bound always, and no rank is higher than without the error bound."""
    n, m = zip(*modes, strict=True)
    rows, columns = math.prod(n), math.prod(m)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.double)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u * (s * torch.arange(1, len(s) + 1) ** -decay) @ v
    free = tt_svd(matrix, n, m, relative_error=relative_error)
    assert float((full(free) - matrix).norm()) <= relative_error * float(matrix.norm()) * (1 + BOUND)
    exact = tt_svd(matrix, n, m)
    rounded = tt_round(exact, relative_error=relative_error)
    assert float((full(rounded) - matrix).norm()) <= relative_error * float(matrix.norm()) * (1 + BOUND)
    bounded = tt_svd(matrix, n, m, rank, relative_error)
    allowed = TTShape.make(n, m, rank).tt_ranks
    for cores in (free, rounded, bounded):
        assert all(r <= most for r, most in zip(TTShape.of(cores).tt_ranks, TTShape.of(exact).tt_ranks, strict=True))
    assert all(r <= most for r, most in zip(TTShape.of(bounded).tt_ranks, allowed, strict=True))


def test_a_looser_error_bound_saves_ranks() -> None:
    u, s, v = torch.linalg.svd(torch.randn(64, 64, dtype=torch.double))
    matrix = u * (s * torch.arange(1, 65) ** -2.0) @ v
    counts = [TTShape.of(tt_svd(matrix, (8, 8), (8, 8), relative_error=e)).tt_ranks[1] for e in (0.0, 0.01, 0.1, 0.5)]
    assert counts == sorted(set(counts), reverse=True)


@pytest.mark.parametrize("method", ["svd", "round"])
def test_the_error_falls_as_the_rank_rises(method: str) -> None:
    matrix = torch.randn(24, 30, dtype=torch.double)
    modes = (2, 3, 4), (5, 2, 3)
    exact = tt_svd(matrix, *modes)
    errors = []
    for rank in (1, 2, 4, 8, 12):
        cores = tt_svd(matrix, *modes, rank) if method == "svd" else tt_round(exact, rank)
        errors.append(float((full(cores) - matrix).norm()))
    assert errors == sorted(set(errors), reverse=True)
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_cores_have_the_dtype_of_the_matrix(dtype: torch.dtype) -> None:
    cores = tt_svd(torch.randn(6, 6).to(dtype), (2, 3), (3, 2))
    assert all(core.dtype == dtype for core in [*cores, *tt_round(cores)])


def test_a_matrix_of_zeros_is_no_special_case() -> None:
    for cores in (tt_svd(torch.zeros(6, 6), (2, 3), (3, 2)), tt_svd(torch.zeros(6, 6), (2, 3), (3, 2), None, 0.1)):
        assert bool((full(cores) == 0).all())
        assert bool((full(tt_round(cores, relative_error=0.1)) == 0).all())


# ---- rounding


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_lossless_rounding_keeps_the_matrix(shape: TTShape) -> None:
    cores = cores_of(shape)
    before = [core.clone() for core in cores]
    assert close(full(tt_round(cores)), full(cores))
    assert all(torch.equal(core, old) for core, old in zip(cores, before, strict=True))


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_a_train_added_to_itself_is_rounded_to_its_own_ranks(shape: TTShape) -> None:
    cores = cores_of(shape)
    doubled = sum_of(cores, cores)
    assert close(full(doubled), 2 * full(cores))
    rounded = tt_round(doubled, relative_error=1e-10)
    assert TTShape.of(rounded).tt_ranks == shape.tt_ranks
    assert close(full(rounded), 2 * full(cores), 1e-9)


def test_a_sum_of_different_trains_keeps_the_sum_of_their_ranks() -> None:
    shape = TTShape.make((4, 4, 4), (3, 3, 3), 2)
    cores, others = cores_of(shape, 0), cores_of(shape, 1)
    rounded = tt_round(sum_of(cores, others), relative_error=1e-10)
    assert TTShape.of(rounded).tt_ranks == (1, 4, 4, 1)
    assert close(full(rounded), full(cores) + full(others), 1e-9)


def test_ranks_above_use_are_rounded_away() -> None:
    cores = [torch.randn(1, 2, 2, 50, dtype=torch.double), torch.randn(50, 3, 1, 1, dtype=torch.double)]
    rounded = tt_round(cores)
    assert TTShape.of(rounded).tt_ranks == (1, 3, 1)
    assert close(full(rounded), full(cores))


# ---- shapes


def test_ranks_are_clipped_to_what_is_of_use() -> None:
    assert clip_ranks((2, 2, 2), (2, 2, 2), (1, 99, 99, 1)) == (1, 4, 4, 1)
    assert clip_ranks((2, 9, 2), (1, 9, 3), (1, 5, 99, 1)) == (1, 2, 6, 1)
    assert clip_ranks((5,), (4,), (1, 1)) == (1, 1)
    assert TTShape.make((8, 20, 20, 18), (4, 4, 4, 4), 4).tt_ranks == (1, 4, 4, 4, 1)


@pytest.mark.parametrize("ranks", [3, (3, 3), (1, 3, 3, 1)], ids=str)
def test_ranks_are_given_in_three_ways(ranks: int | tuple[int, ...]) -> None:
    assert TTShape.make((4, 4, 4), (2, 2, 2), ranks).tt_ranks == (1, 3, 3, 1)


def test_without_ranks_any_matrix_fits() -> None:
    assert TTShape.make((2, 3, 4), (5, 2, 3)).tt_ranks == (1, 10, 12, 1)


def test_sizes_and_counts() -> None:
    shape = TTShape((4, 5), (3, 2), (1, 2, 1))
    assert (shape.num_cores, shape.in_features, shape.out_features) == (2, 20, 6)
    assert shape.core_shapes == [(1, 4, 3, 2), (2, 5, 2, 1)]
    assert shape.num_parameters == 44
    assert shape.compression == pytest.approx(120 / 44)


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_the_shape_of_cores_is_found(shape: TTShape) -> None:
    assert TTShape.of(cores_of(shape)) == shape


# ---- what does not fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), (2, 3, 4), 2), r"as many input_modes as output_modes, .* got \(2, 3\) and \(2, 3, 4\)"),
        (((), (), 2), "at least one, got"),
        (((2, 0), (2, 3), 2), r"input_modes: expected positive integers, got \(2, 0\)"),
        (((2, 3), (2, -3), 2), r"output_modes: expected positive integers, got \(2, -3\)"),
        (((2, 3.0), (2, 3), 2), r"input_modes: expected positive integers, got \(2, 3\.0\)"),
        (((2, 3), (2, 3), 0), r"tt_ranks: expected 3 positive ranks, .* got \(1, 0, 1\)"),
        (((2, 3), (2, 3), (2, 2, 1)), r"tt_ranks: expected 3 positive ranks, the first and the last 1"),
        (((2, 3), (2, 3), (1, 2, 2, 1)), r"tt_ranks: expected 3 positive ranks"),
        (((2, 3), (2, 3), (1.5,)), r"tt_ranks: expected 3 positive"),
        (((2, 3), (2, 3), 2.5), r"tt_ranks: expected"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTShape.make(*arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], r"cores: expected shapes \[r, n, m, r'\], got \[\]"),
        ([(2, 2)], r"cores: expected shapes .* got \[\[2, 2\]\]"),
        ([(1, 2, 2, 3), (2, 2, 2, 1)], r"cores: expected ranks that meet, got \[\(1, 3\), \(2, 1\)\]"),
        ([(2, 2, 2, 1)], "tt_ranks: expected 2 positive ranks, the first and the last 1"),
    ],
)
def test_cores_that_are_no_train_are_refused(sizes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTShape.of([torch.zeros(size) for size in sizes])


def test_matrices_that_cannot_be_decomposed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a matrix \[6, 6\], got \[6, 5\]"):
        tt_svd(torch.zeros(6, 5), (2, 3), (2, 3))
    for error in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"relative_error: expected a number in \[0, 1\), got"):
            tt_svd(torch.zeros(6, 6), (2, 3), (2, 3), relative_error=error)
        with pytest.raises(ValueError, match=r"relative_error: expected a number in \[0, 1\), got"):
            tt_round([torch.zeros(1, 2, 2, 1)], relative_error=error)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="matrix: expected finite values"):
            tt_svd(torch.full((6, 6), value), (2, 3), (2, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cores_that_are_not_finite_are_not_rounded(value: float) -> None:
    with pytest.raises(ValueError, match="cores: expected finite values"):
        tt_round([torch.full((1, 2, 2, 2), value), torch.ones(2, 2, 2, 1)])


def test_float32_is_rounded_once() -> None:
    matrix = torch.randn(24, 30)
    assert torch.allclose(full(tt_svd(matrix, (2, 3, 4), (5, 2, 3))), matrix, atol=CONTRACTION)

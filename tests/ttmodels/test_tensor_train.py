import pytest
import torch

from tests.tolerances import CONTRACTION
from ttmodels.tensor_train import TTShape, clip_ranks, full, random_cores, squared_norm, tt_svd


def test_entries_are_products_of_core_slices() -> None:
    """The definition, written out: W[i, j] = G_1[:, i_1, j_1, :] ... G_d[:, i_d, j_d, :]."""
    shape = TTShape.make((2, 3, 2), (3, 1, 2), 2)
    cores = random_cores(shape, 1.0)
    matrix = full(cores)
    for i, rows in enumerate(torch.cartesian_prod(*map(torch.arange, shape.input_modes)).tolist()):
        for j, columns in enumerate(torch.cartesian_prod(*map(torch.arange, shape.output_modes)).tolist()):
            product = torch.eye(1)
            for core, row, column in zip(cores, rows, columns, strict=True):
                product = product @ core[:, row, column, :]
            assert abs(float(product) - float(matrix[i, j])) < CONTRACTION


@pytest.mark.parametrize("d", range(1, 7))
@pytest.mark.parametrize("rank", [1, 2, 8, 32])
def test_random_cores_have_the_asked_scale(d: int, rank: int) -> None:
    """Two cores tell nothing of six: the matrix itself is measured."""
    shape = TTShape.make((3,) * d, (2,) * d, rank)
    matrix = full(random_cores(shape, 0.05))
    assert float(matrix.pow(2).mean().sqrt()) == pytest.approx(0.05, rel=1e-3)


def test_squared_norm_needs_no_matrix() -> None:
    cores = random_cores(TTShape.make((3, 4, 5), (2, 3, 2), 4), 0.3)
    assert float(squared_norm(cores)) == pytest.approx(float(full(cores).pow(2).sum()), rel=1e-5)


def test_tt_svd_is_exact_at_full_rank() -> None:
    matrix = torch.randn(24, 30)
    shape = TTShape.make((2, 3, 4), (5, 2, 3), 1000)
    assert torch.allclose(full(tt_svd(matrix, shape)), matrix, atol=CONTRACTION)


def test_tt_svd_of_two_cores_is_the_best_of_its_rank() -> None:
    """With two cores the error is that of a truncated SVD of the interleaved matrix (Eckart-Young)."""
    matrix, rank = torch.randn(20, 20), 5
    cores = tt_svd(matrix, TTShape((4, 5), (5, 4), (1, rank, 1)))
    interleaved = matrix.reshape(4, 5, 5, 4).transpose(1, 2).reshape(20, 20)
    best = torch.linalg.svdvals(interleaved)[rank:].norm()
    assert float((full(cores) - matrix).norm()) == pytest.approx(float(best), rel=1e-4)


def test_ranks_are_clipped_to_what_is_of_use() -> None:
    assert clip_ranks((2, 2, 2), (2, 2, 2), (1, 99, 99, 1)) == (1, 4, 4, 1)
    assert TTShape.make((8, 20, 20, 18), (4, 4, 4, 4), 4).tt_ranks == (1, 4, 4, 4, 1)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="as many input_modes as output_modes"):
        TTShape.make((2, 3), (2, 3, 4), 2)
    with pytest.raises(ValueError, match="expected 3 of them"):
        TTShape((2, 3), (2, 3), (1, 2, 2, 1))
    with pytest.raises(ValueError, match=r"expected a matrix \[6, 6\]"):
        tt_svd(torch.zeros(6, 5), TTShape.make((2, 3), (2, 3), 2))

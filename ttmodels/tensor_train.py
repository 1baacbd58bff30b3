"""The Tensor-Train matrix: a train of cores that stands for a large weight matrix.

Core k has shape [r_{k-1}, n_k, m_k, r_k]; entry (i, j) of the matrix W [N, M] is the product of the d slices
G_k[:, i_k, j_k, :] with i = (i_1 .. i_d), j = (j_1 .. j_d) in row-major order. A row vector x meets it as x @ W.

Reference: Oseledets, "Tensor-Train decomposition", SIAM J. Sci. Comput. 33(5), 2011; Novikov et al., "Tensorizing
neural networks", NIPS 2015, eq. (3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ranks = int | Sequence[int]
"""One inner rank for all, or d - 1 inner ranks, or all d + 1."""


@dataclass(frozen=True)
class TTShape:
    """input_modes n and output_modes m of equal length d; tt_ranks of length d + 1, 1 at both ends."""

    input_modes: tuple[int, ...]
    output_modes: tuple[int, ...]
    tt_ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        n, m, r = self.input_modes, self.output_modes, self.tt_ranks
        check_mode_pair(n, m)
        _check_ranks(r, len(n), "tt_ranks")

    @classmethod
    def make(
        cls,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        argument: str = "tt_ranks",
    ) -> TTShape:
        """A shape whose ranks are clipped to what is of use; the largest of use without any.

        argument: what a ValueError calls the ranks.
        """
        n, m = tuple(input_modes), tuple(output_modes)
        check_mode_pair(n, m)
        if tt_ranks is None:
            ranks: tuple[int, ...] = (1, *[math.prod(n) * math.prod(m)] * (len(n) - 1), 1)
        elif isinstance(tt_ranks, int):
            ranks = (1, *[tt_ranks] * (len(n) - 1), 1)
        elif not isinstance(tt_ranks, Sequence):
            raise ValueError(f"{argument}: expected an integer or a sequence of them, got {tt_ranks!r}")
        else:
            ranks = tuple(tt_ranks) if len(tt_ranks) == len(n) + 1 else (1, *tt_ranks, 1)
        _check_ranks(ranks, len(n), argument)
        return cls(n, m, clip_ranks(n, m, ranks))

    @classmethod
    def of(cls, cores: Sequence[Tensor]) -> TTShape:
        """The shape of given cores.

        Raises:
            ValueError: cores that are not 4-d, or whose ranks do not meet.
        """
        sizes = [tuple(core.shape) for core in cores]
        if not sizes or any(len(size) != 4 for size in sizes):
            raise ValueError(f"cores: expected shapes [r, n, m, r'], got {[list(size) for size in sizes]}")
        if any(left[3] != right[0] for left, right in itertools.pairwise(sizes)):
            raise ValueError(f"cores: expected ranks that meet, got {[(size[0], size[3]) for size in sizes]}")
        ranks = (sizes[0][0], *(size[3] for size in sizes))
        return cls(tuple(size[1] for size in sizes), tuple(size[2] for size in sizes), ranks)

    @property
    def num_cores(self) -> int:
        return len(self.input_modes)

    @property
    def in_features(self) -> int:
        return math.prod(self.input_modes)

    @property
    def out_features(self) -> int:
        return math.prod(self.output_modes)

    @property
    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        r = self.tt_ranks
        return [(r[k], self.input_modes[k], self.output_modes[k], r[k + 1]) for k in range(self.num_cores)]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.core_shapes)

    @property
    def compression(self) -> float:
        """Weights of the dense matrix divided by those of the cores."""
        return self.in_features * self.out_features / self.num_parameters


def check_mode_pair(n: tuple[int, ...], m: tuple[int, ...]) -> None:
    """Raise ValueError unless these are input and output modes of one train."""
    if not n or len(n) != len(m):
        raise ValueError(f"expected as many input_modes as output_modes, at least one, got {n} and {m}")
    for name, modes in (("input_modes", n), ("output_modes", m)):
        if any(not isinstance(mode, int) or mode < 1 for mode in modes):
            raise ValueError(f"{name}: expected positive integers, got {modes}")


def _check_ranks(ranks: tuple[int, ...], num_cores: int, argument: str) -> None:
    integers = all(isinstance(rank, int) and rank >= 1 for rank in ranks)
    if len(ranks) != num_cores + 1 or not integers or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"{argument}: expected {num_cores + 1} positive ranks, the first and the last 1, got {ranks}")


def clip_ranks(input_modes: Sequence[int], output_modes: Sequence[int], tt_ranks: Sequence[int]) -> tuple[int, ...]:
    """Lower each rank to the largest that can be of use: no unfolding has a higher one."""
    sizes = [n * m for n, m in zip(input_modes, output_modes, strict=True)]
    ranks = list(tt_ranks)
    for k in range(1, len(ranks)):
        ranks[k] = min(ranks[k], ranks[k - 1] * sizes[k - 1])
    for k in range(len(ranks) - 2, -1, -1):
        ranks[k] = min(ranks[k], ranks[k + 1] * sizes[k])
    return tuple(ranks)


# ---- what the cores stand for


def full(cores: Sequence[Tensor]) -> Tensor:
    """The matrix that the cores stand for.

    Shape: cores [r_{k-1}, n_k, m_k, r_k] -> [prod n, prod m].
    """
    merged = cores[0]
    for core in cores[1:]:
        merged = merge_pair(merged, core)
    return merged.reshape(merged.shape[1], merged.shape[2])


def merge_pair(left: Tensor, right: Tensor) -> Tensor:
    """Two neighbouring cores as one: [a, n, m, r] and [r, n', m', b] -> [a, n n', m m', b]."""
    a, n, m, r = left.shape
    _, n2, m2, b = right.shape
    product = left.reshape(a * n * m, r) @ right.reshape(r, n2 * m2 * b)
    return product.reshape(a, n, m, n2, m2, b).transpose(2, 3).reshape(a, n * n2, m * m2, b)


def inner(cores: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Sum of the products of the entries of two matrices of equal modes, without making them."""
    gram = cores[0].new_ones(1, 1)
    for core, other in zip(cores, others, strict=True):
        gram = torch.einsum("ab,anc,bnd->cd", gram, core.flatten(1, 2), other.flatten(1, 2))
    return gram.reshape(())


def squared_norm(cores: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries of `full(cores)`, without making it."""
    return inner(cores, cores)


# ---- from a matrix to cores, and to smaller ones


@torch.no_grad()
def tt_svd(
    matrix: Tensor,
    input_modes: Sequence[int],
    output_modes: Sequence[int],
    tt_ranks: Ranks | None = None,
    relative_error: float = 0.0,
) -> list[Tensor]:
    """Cores for a dense matrix [N, M] by successive truncated SVDs, in float64.

    Args:
        tt_ranks: the largest ranks allowed; those of use without them.
        relative_error: ranks are lowered as long as ||W - full|| <= relative_error * ||W|| (Frobenius), where tt_ranks
            allow that.

    Reference: Oseledets 2011, algorithm 1 and theorem 2.2, on the matrix with row and column modes interleaved.
    """
    shape = TTShape.make(input_modes, output_modes, tt_ranks)
    n, m, d = shape.input_modes, shape.output_modes, shape.num_cores
    if tuple(matrix.shape) != (shape.in_features, shape.out_features):
        raise ValueError(f"expected a matrix {[shape.in_features, shape.out_features]}, got {list(matrix.shape)}")
    _check_relative_error(relative_error)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("matrix: expected finite values, got NaN or infinity")
    order = [axis for k in range(d) for axis in (k, d + k)]
    rest = matrix.double().reshape(*n, *m).permute(order).reshape(1, -1)
    allowed = relative_error * float(rest.norm()) / math.sqrt(max(d - 1, 1))
    cores = []
    for k in range(d - 1):
        u, rest = _split(rest.reshape(rest.shape[0] * n[k] * m[k], -1), shape.tt_ranks[k + 1], allowed)
        cores.append(u.reshape(-1, n[k], m[k], u.shape[1]))
    cores.append(rest.reshape(-1, n[d - 1], m[d - 1], 1))
    return [core.to(matrix.dtype) for core in cores]


@torch.no_grad()
def tt_round(cores: Sequence[Tensor], tt_ranks: Ranks | None = None, relative_error: float = 0.0) -> list[Tensor]:
    """The same matrix, or one near it, with lower ranks; the dense matrix is never made.

    Args: as for `tt_svd`.

    Reference: Oseledets 2011, algorithm 2: orthogonalise from the right, then truncate from the left.
    """
    found = TTShape.of(cores)
    check_finite(cores)
    shape = TTShape.make(found.input_modes, found.output_modes, found.tt_ranks if tt_ranks is None else tt_ranks)
    _check_relative_error(relative_error)
    work = [core.double() for core in cores]
    for k in range(len(work) - 1, 0, -1):
        size = work[k].shape
        q, r = torch.linalg.qr(work[k].reshape(size[0], -1).T)
        work[k] = q.T.reshape(-1, *size[1:])
        work[k - 1] = work[k - 1] @ r.T
    allowed = relative_error * float(work[0].norm()) / math.sqrt(max(len(work) - 1, 1))
    for k in range(len(work) - 1):
        size = work[k].shape
        u, rest = _split(work[k].reshape(-1, size[3]), shape.tt_ranks[k + 1], allowed)
        work[k] = u.reshape(*size[:3], -1)
        work[k + 1] = torch.tensordot(rest, work[k + 1], 1)
    return [core.to(cores[0].dtype) for core in work]


def _split(matrix: Tensor, max_rank: int, allowed: float) -> tuple[Tensor, Tensor]:
    """matrix ~ u @ rest by a truncated SVD: at most max_rank, and no more than the error `allowed` needs."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    tails = s.flip(0).square().cumsum(0).flip(0).sqrt()  # error of keeping k of them, for each k
    needed = int((tails > allowed).sum()) if allowed else len(s)
    rank = max(1, min(max_rank, needed))
    return u[:, :rank], s[:rank, None] * vh[:rank]


def check_finite(cores: Sequence[Tensor]) -> None:
    """Raise ValueError where a core holds NaN or infinity."""
    for k, core in enumerate(cores):
        if not bool(torch.isfinite(core).all()):
            raise ValueError(f"cores: expected finite values, core {k} holds NaN or infinity")


def _check_relative_error(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"relative_error: expected a number in [0, 1), got {value}")

"""The Tensor-Train matrix: a train of cores that stands for a large weight matrix.

Core k has shape [r_{k-1}, n_k, m_k, r_k]; entry (i, j) of the matrix W [N, M] is the product of the d slices
G_k[:, i_k, j_k, :] with i = (i_1 .. i_d), j = (j_1 .. j_d) in row-major order. A row vector x meets it as x @ W.

Reference: Oseledets, "Tensor-Train decomposition", SIAM J. Sci. Comput. 33(5), 2011; Novikov et al., "Tensorizing
neural networks", NIPS 2015, eq. (3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TTShape:
    """input_modes n and output_modes m of equal length d; tt_ranks of length d + 1, 1 at both ends."""

    input_modes: tuple[int, ...]
    output_modes: tuple[int, ...]
    tt_ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        n, m, r = self.input_modes, self.output_modes, self.tt_ranks
        if not n or len(n) != len(m):
            raise ValueError(f"expected as many input_modes as output_modes, got {n} and {m}")
        if len(r) != len(n) + 1 or r[0] != 1 or r[-1] != 1:
            raise ValueError(f"tt_ranks {r}: expected {len(n) + 1} of them, the first and the last 1")
        if min(*n, *m, *r) < 1:
            raise ValueError(f"expected positive modes and ranks, got {n}, {m}, {r}")

    @classmethod
    def make(cls, input_modes: Sequence[int], output_modes: Sequence[int], rank: int | Sequence[int]) -> TTShape:
        """A shape with one inner rank for all, or d - 1 inner ranks, or all d + 1; clipped to what is of use."""
        n, m = tuple(input_modes), tuple(output_modes)
        if len(n) != len(m):
            raise ValueError(f"expected as many input_modes as output_modes, got {n} and {m}")
        if isinstance(rank, int):
            ranks: tuple[int, ...] = (1, *[rank] * (len(n) - 1), 1)
        else:
            ranks = tuple(rank) if len(rank) == len(n) + 1 else (1, *rank, 1)
        return cls(n, m, clip_ranks(n, m, ranks))

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


def clip_ranks(input_modes: Sequence[int], output_modes: Sequence[int], tt_ranks: Sequence[int]) -> tuple[int, ...]:
    """Lower each rank to the largest that can be of use: no unfolding has a higher one."""
    sizes = [n * m for n, m in zip(input_modes, output_modes, strict=True)]
    ranks = list(tt_ranks)
    for k in range(1, len(ranks)):
        ranks[k] = min(ranks[k], ranks[k - 1] * sizes[k - 1])
    for k in range(len(ranks) - 2, -1, -1):
        ranks[k] = min(ranks[k], ranks[k + 1] * sizes[k])
    return tuple(ranks)


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


def squared_norm(cores: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries of `full(cores)`, without making it."""
    gram = cores[0].new_ones(1, 1)
    for core in cores:
        flat = core.flatten(1, 2)
        gram = torch.einsum("ab,anc,bnd->cd", gram, flat, flat)
    return gram.reshape(())


@torch.no_grad()
def random_cores(shape: TTShape, std: float, generator: torch.Generator | None = None) -> list[Tensor]:
    """Gaussian cores whose matrix has exactly the root mean square `std`, whatever d and the ranks.

    Each core has the same share of the scale; what chance leaves of the norm is then scaled away.
    """
    cores = [torch.randn(core_shape, generator=generator) for core_shape in shape.core_shapes]
    cores = [core / math.sqrt(core.shape[0]) for core in cores]
    rms = torch.sqrt(squared_norm([core.double() for core in cores]) / (shape.in_features * shape.out_features))
    share = (std / float(rms)) ** (1 / shape.num_cores)
    return [core * share for core in cores]


@torch.no_grad()
def tt_svd(matrix: Tensor, shape: TTShape) -> list[Tensor]:
    """Cores of `shape` for a dense matrix [N, M] by successive truncated SVDs; exact where the ranks suffice.

    Reference: Oseledets 2011, algorithm 1, on the matrix with its row and column modes interleaved.
    """
    n, m, r = shape.input_modes, shape.output_modes, shape.tt_ranks
    if tuple(matrix.shape) != (shape.in_features, shape.out_features):
        raise ValueError(f"expected a matrix {[shape.in_features, shape.out_features]}, got {list(matrix.shape)}")
    d = shape.num_cores
    order = [axis for k in range(d) for axis in (k, d + k)]
    rest = matrix.double().reshape(*n, *m).permute(order).reshape(1, -1)
    cores = []
    for k in range(d - 1):
        u, s, vh = torch.linalg.svd(rest.reshape(r[k] * n[k] * m[k], -1), full_matrices=False)
        rank = r[k + 1]
        kept = min(rank, s.numel())
        core = u.new_zeros(u.shape[0], rank)
        core[:, :kept] = u[:, :kept]
        rest = vh.new_zeros(rank, vh.shape[1])
        rest[:kept] = s[:kept, None] * vh[:kept]
        cores.append(core.reshape(r[k], n[k], m[k], rank))
    cores.append(rest.reshape(r[d - 1], n[d - 1], m[d - 1], 1))
    return [core.to(matrix.dtype) for core in cores]

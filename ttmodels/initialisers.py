"""First values for the cores of a train, by name: what is scaled is the matrix that they stand for.

Reference: Glorot, Bengio, AISTATS 2010, eq. (16); He et al., ICCV 2015, eq. (10); Saxe et al., ICLR 2014 (orthogonal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttmodels.tensor_train import TTShape, squared_norm

CoreInitialiser = Callable[[TTShape], Sequence[Tensor]]
BiasInitialiser = Callable[[Tensor], object]
"""Fills a bias in place, as those of torch.nn.init do."""

_VARIANCES: dict[str, Callable[[int, int], float]] = {
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
}
NAMES = (*(f"{rule}_{kind}" for rule in _VARIANCES for kind in ("normal", "uniform")), "orthogonal", "zeros")


def make_cores(initialiser: str | CoreInitialiser, shape: TTShape, fan_out: int | None = None) -> list[Tensor]:
    """Cores by an initialiser's name, or made by a callable.

    Args:
        fan_out: outputs of one gate, where several share the train; all outputs without it.

    Raises:
        ValueError: an unknown name, cores of another shape, or ranks that allow no orthogonal matrix.
    """
    if callable(initialiser):
        cores = [torch.as_tensor(core) for core in initialiser(shape)]
        if [tuple(core.shape) for core in cores] != shape.core_shapes:
            raise ValueError(
                f"kernel_initialiser: expected cores {shape.core_shapes}, got {[tuple(core.shape) for core in cores]}"
            )
        return cores
    if initialiser not in NAMES:
        raise ValueError(f"kernel_initialiser: expected one of {', '.join(NAMES)} or a callable, got {initialiser!r}")
    if initialiser == "zeros":
        return zero_cores(shape)
    if initialiser == "orthogonal":
        return orthogonal_cores(shape)
    rule, kind = initialiser.split("_")
    variance = _VARIANCES[rule](shape.in_features, fan_out or shape.out_features)
    return random_cores(shape, math.sqrt(variance), uniform=kind == "uniform")


@torch.no_grad()
def random_cores(
    shape: TTShape, std: float, *, uniform: bool = False, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Cores of independent values whose matrix has exactly the root mean square `std`, whatever d and the ranks.

    Each core has the same share of the scale; what chance leaves of the norm is then scaled away.
    """
    draw = torch.rand if uniform else torch.randn
    cores = [draw(core_shape, generator=generator) for core_shape in shape.core_shapes]
    if uniform:
        cores = [2 * core - 1 for core in cores]
    cores = [core / math.sqrt(core.shape[0]) for core in cores]
    rms = math.sqrt(float(squared_norm([core.double() for core in cores])) / (shape.in_features * shape.out_features))
    share = (std / rms) ** (1 / shape.num_cores)
    return [core * share for core in cores]


@torch.no_grad()
def zero_cores(shape: TTShape) -> list[Tensor]:
    """Cores whose matrix is 0 but which still learn: only the last core is 0."""
    return [*random_cores(shape, 1.0)[:-1], torch.zeros(shape.core_shapes[-1])]


@torch.no_grad()
def orthogonal_cores(shape: TTShape, generator: torch.Generator | None = None) -> list[Tensor]:
    """Cores whose matrix W [N, M] has orthonormal columns, or rows where M > N.

    Each core is an isometry towards one core of the train: left of it from (r_{k-1}, m_k) to (n_k, r_k), right of it
    from (m_k, r_k) to (r_{k-1}, n_k), itself from (r_{c-1}, m_c, r_c) to n_c; so their product is one. Where no such
    isometries of the full ranks exist, lower ranks carry the matrix and the rest of the cores waits to be used.

    Raises:
        ValueError: no ranks up to those given allow it.
    """
    if shape.out_features > shape.in_features:
        turned = TTShape(shape.output_modes, shape.input_modes, shape.tt_ranks)
        return [core.transpose(1, 2).contiguous() for core in orthogonal_cores(turned, generator)]
    for centre, ranks in _isometric_ranks(shape):
        cores = []
        for k, (_, n, m, _) in enumerate(shape.core_shapes):
            r, s = ranks[k], ranks[k + 1]
            if k < centre:
                core = _isometry(n * s, r * m, generator).reshape(n, s, r, m).permute(2, 0, 3, 1)
            elif k > centre:
                core = _isometry(r * n, m * s, generator).reshape(r, n, m, s)
            else:
                core = _isometry(n, r * m * s, generator).reshape(n, r, m, s).permute(1, 0, 2, 3)
            cores.append(_pad(core, shape.core_shapes[k], generator))
        return cores
    raise ValueError(
        f"orthogonal: no train with input_modes {shape.input_modes}, output_modes {shape.output_modes} and ranks up to "
        f"{shape.tt_ranks} is orthogonal by construction; raise the ranks, or choose modes with n >= m"
    )


def _isometric_ranks(shape: TTShape) -> list[tuple[int, tuple[int, ...]]]:
    """Centres and ranks for which all isometries exist: the given ranks first, then the lowest."""
    n, m, given, d = shape.input_modes, shape.output_modes, shape.tt_ranks, shape.num_cores
    found: list[tuple[int, tuple[int, ...]]] = []
    for lowest in (False, True):
        for centre in range(d):
            ranks = list(given)
            if lowest:
                for k in range(centre):
                    ranks[k + 1] = -(-ranks[k] * m[k] // n[k])
                for k in range(d - 1, centre, -1):
                    ranks[k] = -(-ranks[k + 1] * m[k] // n[k])
            fits = all(r <= g for r, g in zip(ranks, given, strict=True))
            fits &= all(n[k] * ranks[k + 1] >= ranks[k] * m[k] for k in range(centre))
            fits &= all(ranks[k] * n[k] >= m[k] * ranks[k + 1] for k in range(centre + 1, d))
            if fits and n[centre] >= ranks[centre] * m[centre] * ranks[centre + 1]:
                found.append((centre, tuple(ranks)))
    return found


def _isometry(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign()).float()


def _pad(core: Tensor, size: tuple[int, int, int, int], generator: torch.Generator | None) -> Tensor:
    """Enlarge a core's ranks without changing the matrix: what is new on its left is 0, on its right random."""
    r, n, m, s = core.shape
    padded = torch.zeros(size)
    padded[:r, :, :, :s] = core
    if s < size[3]:
        padded[:r, :, :, s:] = torch.randn(r, n, m, size[3] - s, generator=generator) * core.square().mean().sqrt()
    return padded

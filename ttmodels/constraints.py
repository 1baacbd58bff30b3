"""Constraints on weights, as parametrizations, and penalties for them.

Reference: torch.nn.utils.parametrize; Srebro, Shraibman, COLT 2005 (max-norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class NonNegative(nn.Module):
    """Weights that cannot fall below 0: the size of what is learned. Clipped ones would have no gradient to rise by."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.abs()


class MaxNorm(nn.Module):
    """No fibre along the axes `dim` is longer than `limit`; for a core, (0, 1) are the fibres into one output."""

    def __init__(self, limit: float, dim: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"limit: expected a positive norm, got {limit}")
        self.limit, self.dim = limit, dim

    def forward(self, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(weight, dim=self.dim, keepdim=True)
        return torch.mul(weight, (self.limit / norm.clamp_min(torch.finfo(weight.dtype).tiny)).clamp_max(1))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"limit={self.limit}, dim={self.dim}"


@dataclass(frozen=True)
class Penalty:
    """l1 * sum |values| + l2 * sum values^2."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.l1 < 0 or self.l2 < 0:
            raise ValueError(f"expected penalties of at least 0, got l1={self.l1} and l2={self.l2}")

    def __call__(self, values: Tensor) -> Tensor:
        return self.l1 * values.abs().sum() + self.l2 * values.square().sum()

"""A linear layer whose weight is a Tensor-Train matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ttmodels import contraction, tensor_train
from ttmodels.contraction import Plan
from ttmodels.tensor_train import TTShape


class TTLinear(nn.Module):
    """y = x W + b with W as a train of cores.

    Args:
        input_modes: n, multiplying to the size of the input.
        output_modes: m, as many, multiplying to the size of the output.
        tt_ranks: one inner rank for all, or d - 1 inner ranks, or all d + 1; clipped to what is of use.
        bias: whether to add b.
        plan: how to contract; chosen by cost for the number of rows at hand without it.

    Shape: [..., prod n] -> [..., prod m].

    Raises:
        ValueError: modes or ranks that do not fit each other, or an input of another size.

    Reference: Novikov et al., "Tensorizing neural networks", NIPS 2015, section 4.
    """

    def __init__(
        self,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: int | Sequence[int],
        *,
        bias: bool = True,
        plan: Plan | None = None,
    ) -> None:
        super().__init__()
        self.shape = TTShape.make(input_modes, output_modes, tt_ranks)
        self.plan = plan
        if plan is not None:
            plan.factor_shapes(self.shape)
        self.cores = nn.ParameterList([nn.Parameter(torch.empty(s)) for s in self.shape.core_shapes])
        self.bias = nn.Parameter(torch.empty(self.out_features)) if bias else None
        self.reset_parameters()

    @property
    def in_features(self) -> int:
        return self.shape.in_features

    @property
    def out_features(self) -> int:
        return self.shape.out_features

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None) -> None:
        """Cores whose matrix has the standard deviation `std`, Glorot's sqrt(2 / (N + M)) without it; bias 0."""
        std = math.sqrt(2 / (self.in_features + self.out_features)) if std is None else std
        for core, value in zip(self.cores, tensor_train.random_cores(self.shape, std), strict=True):
            core.copy_(value)
        if self.bias is not None:
            self.bias.zero_()

    def full(self) -> Tensor:
        """W as a dense matrix [prod n, prod m]."""
        return tensor_train.full(list(self.cores))

    def plan_for(self, num_rows: int) -> Plan:
        return self.plan or contraction.choose_plan(self.shape, num_rows)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"expected inputs [..., {self.in_features}] for input_modes {self.shape.input_modes}, "
                f"got {list(x.shape)}"
            )
        plan = self.plan_for(math.prod(x.shape[:-1]))
        y = contraction.apply(x, list(self.cores), plan, self.shape)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        s = self.shape
        return f"input_modes={s.input_modes}, output_modes={s.output_modes}, tt_ranks={s.tt_ranks}"

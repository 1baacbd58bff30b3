"""A linear layer whose weight is a Tensor-Train matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ttmodels import contraction, tensor_train
from ttmodels.activations import Activation, find_activation
from ttmodels.constraints import Penalty
from ttmodels.contraction import Plan, Route
from ttmodels.initialisers import BiasInitialiser, CoreInitialiser, make_cores
from ttmodels.products import autocast_on
from ttmodels.tensor_train import Ranks, TTShape

GRAPH_ROWS = 256
"""Rows that a plan is chosen for where their number is not known: in a compiled or exported graph."""


class TTLinear(nn.Module):
    """y = activation(x W + b) with W as a train of cores.

    Args:
        input_modes: n, multiplying to the size of the input.
        output_modes: m, as many, multiplying to the size of the output.
        tt_ranks: one inner rank for all, or d - 1 inner ranks, or all d + 1; clipped to what is of use.
        bias: whether to add b.
        activation: a name of `ttmodels.activations`, a callable, or None.
        kernel_initialiser: a name of `ttmodels.initialisers`, or a callable TTShape -> cores.
        bias_initialiser: fills the bias in place, as those of torch.nn.init; zeros without it.
        kernel_penalty: its l2 is that of the matrix W, its l1 that of the cores, since W is never made.
        bias_penalty, activity_penalty: of b, and of the outputs, averaged over the rows of the last call in training.
        kernel_constraint: makes a parametrization for each core, for example NonNegative or lambda: MaxNorm(2).
        plan: how to contract; chosen by cost for the number of rows at hand without it.

    Shape: [..., prod n] -> [..., prod m].

    Raises:
        ValueError: an argument that does not fit, or an input of another size, dtype or device; names it.

    Reference: Novikov et al., "Tensorizing neural networks", NIPS 2015, section 4.
    """

    def __init__(
        self,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        bias: bool = True,
        activation: str | Activation | None = None,
        kernel_initialiser: str | CoreInitialiser = "glorot_normal",
        bias_initialiser: BiasInitialiser | None = None,
        kernel_penalty: Penalty | None = None,
        bias_penalty: Penalty | None = None,
        activity_penalty: Penalty | None = None,
        kernel_constraint: Callable[[], nn.Module] | None = None,
        plan: Plan | None = None,
        num_gates: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = TTShape.make(input_modes, output_modes, tt_ranks)
        self.activation = find_activation(activation, "activation")
        self.kernel_initialiser, self.bias_initialiser = kernel_initialiser, bias_initialiser
        self.kernel_penalty, self.bias_penalty = kernel_penalty, bias_penalty
        self.activity_penalty = activity_penalty
        self.num_gates = num_gates
        self.plan = plan
        self.cores = nn.ParameterList(
            [nn.Parameter(torch.empty(size, device=device, dtype=dtype)) for size in self.shape.core_shapes]
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self._activity: Tensor | None = None
        self.reset_parameters()
        if kernel_constraint is not None:
            for k in range(self.shape.num_cores):
                parametrize.register_parametrization(self.cores, str(k), kernel_constraint())

    @classmethod
    def from_cores(cls, cores: Sequence[Tensor], bias: Tensor | None = None) -> Self:
        """A layer with these cores and bias; they are copied.

        Raises:
            ValueError: cores that do not meet, or that hold NaN or infinity.
        """
        given = TTShape.of(cores)
        tensor_train.check_finite(cores)
        shape = TTShape.make(given.input_modes, given.output_modes, given.tt_ranks)
        if shape != given:  # ranks above what is of use
            cores = tensor_train.tt_round(cores, shape.tt_ranks)
        layer = cls(shape.input_modes, shape.output_modes, shape.tt_ranks, bias=bias is not None)
        layer = layer.to(device=cores[0].device, dtype=cores[0].dtype)
        layer.set_cores(cores)
        if layer.bias is not None and bias is not None:
            if bias.shape != layer.bias.shape:
                raise ValueError(f"bias: expected shape [{layer.out_features}], got {list(bias.shape)}")
            layer.bias.data.copy_(bias)
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        relative_error: float = 0.0,
    ) -> Self:
        """A trained dense layer as a train: exact without ranks and error, else the nearest that they allow."""
        cores = tensor_train.tt_svd(linear.weight.T, input_modes, output_modes, tt_ranks, relative_error)
        layer = cls.from_cores(cores, linear.bias)
        layer.cores.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @property
    def plan(self) -> Plan | None:
        """How to contract; None where it is chosen by cost. It may be changed, also before an export."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan
        # Compiled and exported graphs are for any number of rows, and cannot choose. ONNX's merges once, at loading.
        self._graph_route, self._onnx_route = (
            Route.of(plan or choose(self.shape, GRAPH_ROWS), self.shape)
            for choose in (contraction.choose_plan, contraction.onnx_plan)
        )

    @property
    def in_features(self) -> int:
        return self.shape.in_features

    @property
    def out_features(self) -> int:
        return self.shape.out_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise anew; the matrix, and not the cores, has the initialiser's variance."""
        self.set_cores(make_cores(self.kernel_initialiser, self.shape, self.out_features // self.num_gates))
        if self.bias is not None:
            (self.bias_initialiser or nn.init.zeros_)(self.bias)

    @torch.no_grad()
    def set_cores(self, cores: Sequence[Tensor]) -> None:
        """Copy values into the cores, through their constraints.

        Raises:
            ValueError: values of another shape.
        """
        if [tuple(value.shape) for value in cores] != self.shape.core_shapes:
            raise ValueError(
                f"cores: expected shapes {self.shape.core_shapes}, got {[tuple(value.shape) for value in cores]}"
            )
        if parametrize.is_parametrized(self.cores):
            for k, value in enumerate(cores):
                setattr(self.cores, str(k), value.to(self.cores[k]))
            return
        for core, value in zip(self.cores, cores, strict=True):
            core.copy_(value)

    def full(self) -> Tensor:
        """W as a dense matrix [prod n, prod m]."""
        return tensor_train.full(list(self.cores))

    def penalty(self) -> Tensor:
        """What a training loop adds to its loss; 0 without penalties."""
        total: Tensor = self.cores[0].new_zeros(())
        if self.kernel_penalty is not None:
            cores = list(self.cores)
            if self.kernel_penalty.l1:
                total = total + self.kernel_penalty.l1 * torch.stack([core.abs().sum() for core in cores]).sum()
            if self.kernel_penalty.l2:
                total = total + self.kernel_penalty.l2 * tensor_train.squared_norm(cores)
        if self.bias_penalty is not None and self.bias is not None:
            total = total + self.bias_penalty(self.bias)
        if self._activity is not None and self.training:
            total = total + self._activity
        return total

    def plan_for(self, num_rows: int) -> Plan:
        """The plan by which this many rows are contracted."""
        core = self.cores[0]
        return self.plan or contraction.choose_plan(
            self.shape,
            num_rows,
            dtype=core.dtype,
            device=core.device.type,
            training=torch.is_grad_enabled() and core.requires_grad,
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if torch.compiler.is_compiling():
            route = self._onnx_route if torch.onnx.is_in_onnx_export() else self._graph_route
        else:
            route = Route.of(self.plan_for(math.prod(x.shape[:-1])), self.shape)
        y = route.apply(x, list(self.cores))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        y = self.activation(y)
        if self.activity_penalty is not None:
            self._activity = self.activity_penalty(y) / max(math.prod(y.shape[:-1]), 1) if self.training else None
        return y

    def __getstate__(self) -> dict[str, Any]:
        # The activity belongs to one backward pass; a copy of the layer has none.
        return {**self.__dict__, "_activity": None}

    def _check(self, x: Tensor) -> None:
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ValueError(
                f"expected inputs [..., {self.in_features}] for input_modes {self.shape.input_modes}, "
                f"got {list(x.shape)}"
            )
        core = self.cores[0]
        if x.device != core.device:
            raise ValueError(f"expected inputs on {core.device}, where the cores are, got {x.device}")
        if x.dtype != core.dtype and not autocast_on(x):
            raise ValueError(f"expected inputs of {core.dtype}, as the cores are, got {x.dtype}")

    def summary(self) -> str:
        """Shapes, ranks, parameters, compression and the plan for a few numbers of rows."""
        s = self.shape
        lines = [
            f"TTLinear {s.in_features} -> {s.out_features}",
            f"  input_modes   {s.input_modes}",
            f"  output_modes  {s.output_modes}",
            f"  tt_ranks      {s.tt_ranks}",
            f"  cores         {', '.join('x'.join(map(str, size)) for size in s.core_shapes)}",
            f"  parameters    {sum(p.numel() for p in self.parameters()):,}, "
            f"the weight {s.compression:,.1f} times fewer than dense",
        ]
        for rows in (1, 64, 4096):
            plan = self.plan_for(rows)
            lines.append(f"  plan          {plan.groups} {plan.direction} for {rows} rows")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        s = self.shape
        return f"input_modes={s.input_modes}, output_modes={s.output_modes}, tt_ranks={s.tt_ranks}"


def penalty(model: nn.Module) -> Tensor:
    """The sum of the penalties of all TT layers in a network."""
    parts = [module.penalty() for module in model.modules() if isinstance(module, TTLinear)]
    return torch.stack(parts).sum() if parts else torch.zeros(())

"""The sequential part: ONNX's own RNN, GRU and LSTM ops, or a Scan of plain ops where they cannot say a cell.

The first layer's gates are projected before, and enter the op through identity input weights. A later layer reads
hidden states, which are few: its train is merged into the op's own input weights, which costs less than an identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir
import torch

from exporters import projection, scan
from exporters.builder import Builder
from ttmodels.cells import TTCell
from ttmodels.contraction import choose_plan
from ttmodels.onnx_ops import NativeOp, native_op

Target = Literal["cpu", "cuda"]
States = Sequence[ir.Value]
"""Of one cell, h or h and c, [batch, hidden] each."""

PLANNED_ROWS = 16
"""Steps that a later layer's plan is chosen for: those of a clip."""


@dataclass(frozen=True)
class Steps:
    """Which steps of a batch are there: lengths int32 [batch], and present bool [time, batch, 1], which says the same.

    An absent step hands the state on, and its output is 0.
    """

    lengths: ir.Value
    present: ir.Value


def emit(
    graph: Builder,
    cell: TTCell,
    value: ir.Value,
    steps: Steps,
    initial: States | None,
    name: str,
    *,
    projected: bool,
    backwards: bool,
    target: Target,
) -> tuple[ir.Value, States]:
    """Outputs [time, batch, hidden] and the last states of one layer in one direction.

    Args:
        value: gates [time, batch, num_gates * hidden] in torch's order if `projected`, else what the cell's projection
            is still to read, [time, batch, input].
        initial: where the states start; 0 without it.
        name: goes before the names of the weights.
        target: the ops that ONNX Runtime's CUDA provider does not take are a Scan for `cuda`.
    """
    op = native_op(cell)
    if op is not None and (target == "cpu" or op.on_cuda):
        op = op if projected else _with_projection(op, cell)
        return _native(graph, op, value, steps, initial, name, backwards=backwards)
    if not projected:
        plan = choose_plan(cell.projection.shape, PLANNED_ROWS, device=target, merged_once=True)
        value = projection.emit(graph, cell.projection, plan, value, f"{name}.projection")
    states = initial or [_zeros(graph, steps, cell.hidden_size)] * cell.num_states
    return scan.emit(graph, cell, value, steps.present, states, name, backwards=backwards)


def _with_projection(op: NativeOp, cell: TTCell) -> NativeOp:
    """The op that reads what the cell's projection reads."""
    weight, bias = op.identity[0] @ cell.projection.full().T, op.bias.clone()
    if cell.projection.bias is not None:
        bias[0, : len(weight)] += op.identity[0] @ cell.projection.bias
    return replace(op, identity=weight[None], bias=bias)


def _native(
    graph: Builder,
    op: NativeOp,
    value: ir.Value,
    steps: Steps,
    initial: States | None,
    name: str,
    *,
    backwards: bool,
) -> tuple[ir.Value, States]:
    directions = graph.constant([0], "directions_axis")
    outputs, *last = graph.op_outputs(
        op.op_type,
        value,
        graph.constant(op.identity, f"{name}.weight_ih"),
        graph.constant(op.weight_hh, f"{name}.weight_hh"),
        graph.constant(op.bias, f"{name}.bias"),
        steps.lengths,
        *(graph.op("Unsqueeze", part, directions) for part in initial or ()),
        num=3 if op.op_type == "LSTM" else 2,
        direction="reverse" if backwards else "forward",
        **op.attributes,
    )
    states = [graph.op("Squeeze", part, directions) for part in last]
    if initial is not None:  # the ops leave 0 as the last state of an empty sequence
        zero = graph.constant(torch.tensor(0, dtype=torch.int32), "no_steps")
        some = graph.op("Unsqueeze", graph.op("Greater", steps.lengths, zero), graph.constant([1], "units_axis"))
        states = [graph.op("Where", some, new, old) for new, old in zip(states, initial, strict=True)]
    return graph.op("Squeeze", outputs, graph.constant([1], "directions_axis")), states


def _zeros(graph: Builder, steps: Steps, hidden: int) -> ir.Value:
    """A state [batch, hidden] to start from."""
    size = graph.op("Concat", graph.op("Shape", steps.lengths), graph.constant([hidden], "hidden_size"), axis=0)
    return graph.op("Expand", graph.constant(torch.zeros(()), "zero_state"), size)

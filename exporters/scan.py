"""A recurrence as a Scan, for cells that ONNX's own ops cannot say: one step in plain ops is its body."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from exporters import activations
from exporters.builder import Builder, tensor
from ttmodels.cells import TTCell, TTGRUCell, TTLSTMCell

Parts = list[tuple[ir.Value, ir.Value]]
"""Of the hidden product, the matrix and the bias of each part that a step computes by itself."""


def emit(
    graph: Builder,
    cell: TTCell,
    gates: ir.Value,
    present: ir.Value,
    initial: Sequence[ir.Value],
    name: str,
    *,
    backwards: bool,
) -> tuple[ir.Value, list[ir.Value]]:
    """Outputs [time, batch, hidden], 0 where a step is absent, and the last states [batch, hidden].

    Shape: gates [time, batch, num_gates * hidden], present bool [time, batch, 1], initial [batch, hidden] each.
    """
    size, float32 = cell.hidden_size, ir.DataType.FLOAT
    # Constants are the outer graph's: a body reads what is around it.
    parts = _parts(graph, cell, name)
    part_sizes = graph.constant([2 * size, size], f"{name}.part_sizes") if len(parts) > 1 else None
    zero = graph.constant(torch.zeros(()), f"{name}.absent")
    body, prefix = Builder(f"{name}.step."), f"{name}.step"
    old = [tensor(f"{prefix}.old_{i}", float32, "batch", size) for i in range(cell.num_states)]
    now = tensor(f"{prefix}.gates", float32, "batch", cell.num_gates * size)
    here = tensor(f"{prefix}.present", ir.DataType.BOOL, "batch", 1)
    new = _step(body, cell, parts, part_sizes, now, old)
    kept = [body.op("Where", here, mine, before) for mine, before in zip(new, old, strict=True)]
    outputs = [*kept, body.op("Where", here, new[0], zero)]
    for value in outputs:
        value.type, value.shape = ir.TensorType(float32), ir.Shape(("batch", size))
    *last, seen = graph.op_outputs(
        "Scan",
        *initial,
        gates,
        present,
        num=len(outputs),
        body=ir.Graph([*old, now, here], outputs, nodes=body.tape.nodes, name=prefix),
        num_scan_inputs=2,
        scan_input_directions=[int(backwards)] * 2,
        scan_output_directions=[int(backwards)],
    )
    return seen, last


def _parts(graph: Builder, cell: TTCell, name: str) -> Parts:
    """A GRU's candidate is computed by itself, behind or before its reset gate."""
    size = cell.hidden_size
    sizes = [2 * size, size] if isinstance(cell, TTGRUCell) else [cell.num_gates * size]
    weight = cell.hidden_matrix.detach()
    bias = weight.new_zeros(len(weight)) if cell.hidden.bias is None else cell.hidden.bias.detach()
    return [
        (graph.constant(rows.T, f"{name}.weight_hh"), graph.constant(added, f"{name}.bias_hh"))
        for rows, added in zip(weight.split(sizes), bias.split(sizes), strict=True)
    ]


def _step(
    body: Builder, cell: TTCell, parts: Parts, part_sizes: ir.Value | None, gates: ir.Value, state: Sequence[ir.Value]
) -> list[ir.Value]:
    """The new state, as `cell.step` has it."""

    def inner(value: ir.Value) -> ir.Value:
        return activations.emit(body, cell.activation, value)

    def gate(value: ir.Value) -> ir.Value:
        return activations.emit(body, cell.recurrent_activation, value)

    h = state[0]
    if isinstance(cell, TTGRUCell):
        gates_rz, gates_n = body.op_outputs("Split", gates, part_sizes, num=2, axis=1)
        rz = gate(body.op("Add", gates_rz, body.op("Gemm", h, *parts[0])))
        r, z = body.op_outputs("Split", rz, num=2, axis=1, num_outputs=2)
        if cell.reset_after:
            candidate = body.op("Mul", r, body.op("Gemm", h, *parts[1]))
        else:
            candidate = body.op("Gemm", body.op("Mul", r, h), *parts[1])
        n = inner(body.op("Add", gates_n, candidate))
        return [body.op("Add", n, body.op("Mul", z, body.op("Sub", h, n)))]
    total = body.op("Add", gates, body.op("Gemm", h, *parts[0]))
    if not isinstance(cell, TTLSTMCell):
        return [inner(total)]
    i, f, g, o = body.op_outputs("Split", total, num=4, axis=1, num_outputs=4)
    c = body.op("Add", body.op("Mul", gate(f), state[1]), body.op("Mul", gate(i), inner(g)))
    return [body.op("Mul", gate(o), inner(c)), c]

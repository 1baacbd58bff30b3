"""A recurrence as a Scan, for cells that ONNX's own ops cannot say: one step in plain ops is its body."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from exporters import activations
from exporters.builder import Builder, named, tensor
from ttmodels.cells import TTCell, TTGRUCell, TTLSTMCell


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
    size, float32, prefix = cell.hidden_size, ir.DataType.FLOAT, f"{name}.step"
    # Constants are the outer graph's: a body reads what is around it.
    zero = graph.constant(torch.zeros(()), f"{name}.absent")
    body = Builder(f"{prefix}.")
    old = [tensor(f"{prefix}.old_{i}", float32, "batch", size) for i in range(cell.num_states)]
    here = tensor(f"{prefix}.present", ir.DataType.BOOL, "batch", 1)
    if isinstance(cell, TTGRUCell):
        scanned, now, new = _gru(graph, body, cell, gates, old[0], name)
    else:
        scanned, now, new = _of_all_gates(graph, body, cell, gates, old, name)
    outputs = [body.op("Where", here, mine, before) for mine, before in zip(new, old, strict=True)]
    outputs.append(body.op("Where", here, new[0], zero))
    for number, value in enumerate(outputs):
        named(value, f"{prefix}.new_{number}", float32, "batch", size)
    *last, seen = graph.op_outputs(
        "Scan",
        *initial,
        *scanned,
        present,
        num=len(outputs),
        body=ir.Graph([*old, *now, here], outputs, nodes=body.tape.nodes, name=prefix),
        num_scan_inputs=len(scanned) + 1,
        scan_input_directions=[int(backwards)] * (len(scanned) + 1),
        scan_output_directions=[int(backwards)],
    )
    return seen, last


Formula = tuple[list[ir.Value], list[ir.Value], list[ir.Value]]
"""What is scanned, what the body gets of it at a step, and the new states that it makes of that."""


def _of_all_gates(
    graph: Builder, body: Builder, cell: TTCell, gates: ir.Value, old: Sequence[ir.Value], name: str
) -> Formula:
    """An RNN or an LSTM, whose hidden bias is added to the gates of all steps at once."""
    if cell.hidden.bias is not None:
        gates = graph.op("Add", gates, graph.constant(cell.hidden.bias, f"{name}.bias_hh"))
    matrix = graph.constant(cell.hidden_matrix.T, f"{name}.weight_hh")
    now = tensor(f"{name}.step.gates", ir.DataType.FLOAT, "batch", cell.num_gates * cell.hidden_size)
    total = body.op("Gemm", old[0], matrix, now)
    if not isinstance(cell, TTLSTMCell):
        return [gates], [now], [activations.emit(body, cell.activation, total)]
    i, f, g, o = body.op_outputs("Split", total, num=4, axis=1, num_outputs=4)
    i, f, o = (activations.emit(body, cell.recurrent_activation, gate) for gate in (i, f, o))
    g = activations.emit(body, cell.activation, g)
    c = body.op("Add", body.op("Mul", f, old[1]), body.op("Mul", i, g))
    return [gates], [now], [body.op("Mul", o, activations.emit(body, cell.activation, c)), c]


def _gru(graph: Builder, body: Builder, cell: TTGRUCell, gates: ir.Value, h: ir.Value, name: str) -> Formula:
    """r and z first; the candidate's hidden product, with its bias, comes before the reset gate or behind it."""
    size = cell.hidden_size
    bias = cell.hidden.bias if cell.hidden.bias is not None else torch.zeros(3 * size)
    rz_matrix, n_matrix = (
        graph.constant(rows.T, f"{name}.weight_hh_{part}")
        for part, rows in zip(("rz", "n"), cell.hidden_matrix.split([2 * size, size]), strict=True)
    )
    n_bias = graph.constant(bias[2 * size :], f"{name}.bias_hh_n")
    sizes = graph.constant([2 * size, size], f"{name}.sizes")
    rz_gates, n_gates = graph.op_outputs("Split", gates, sizes, num=2, axis=2)
    rz_gates = graph.op("Add", rz_gates, graph.constant(bias[: 2 * size], f"{name}.bias_hh_rz"))
    now = [
        tensor(f"{name}.step.gates_{part}", ir.DataType.FLOAT, "batch", columns)
        for part, columns in (("rz", 2 * size), ("n", size))
    ]
    rz = activations.emit(body, cell.recurrent_activation, body.op("Gemm", h, rz_matrix, now[0]))
    r, z = body.op_outputs("Split", rz, num=2, axis=1, num_outputs=2)
    if cell.reset_after:
        candidate = body.op("Mul", r, body.op("Gemm", h, n_matrix, n_bias))
    else:
        candidate = body.op("Gemm", body.op("Mul", r, h), n_matrix, n_bias)
    n = activations.emit(body, cell.activation, body.op("Add", now[1], candidate))
    return [rz_gates, n_gates], now, [body.op("Add", n, body.op("Mul", z, body.op("Sub", h, n)))]

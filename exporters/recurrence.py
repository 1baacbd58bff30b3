"""The sequential part as ONNX's own RNN, GRU and LSTM ops, fed with projected gates through identity input weights."""

from __future__ import annotations

import onnx_ir as ir

from exporters.builder import Builder
from ttmodels.cells import TTCell
from ttmodels.onnx_ops import native_op


def emit(graph: Builder, cell: TTCell, gates: ir.Value, lengths: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Outputs [time, batch, hidden], 0 past a clip's length, and the last h [batch, hidden].

    gates: [time, batch, num_gates * hidden], in torch's order.
    """
    op = native_op(cell)
    if op is None:
        raise ValueError(f"expected activations that ONNX's ops know, got {cell.activation}")
    outputs, last, *_ = graph.op_outputs(
        op.op_type,
        gates,
        graph.constant(op.identity, "rnn.identity"),
        graph.constant(op.weight_hh, "rnn.weight_hh"),
        graph.constant(op.bias, "rnn.bias"),
        lengths,
        num=2,
        **op.attributes,
    )
    directions = graph.constant([1], "direction_axis")
    first = graph.constant([0], "first_axis")
    return graph.op("Squeeze", outputs, directions), graph.op("Squeeze", last, first)

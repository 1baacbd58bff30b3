"""The sequential part as ONNX's own RNN, GRU and LSTM ops, fed with projected gates through identity input weights.

The ops order their gates otherwise than torch (GRU z, r, h for r, z, n; LSTM i, o, f, c for i, f, g, o); the identity
and the recurrent weights are reordered alike. A GRU always states linear_before_reset: left out, ONNX Runtime's CUDA
provider takes it and computes with another formula than the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor

from ttmodels.recurrent import TTGRU, TTLSTM, TTRNN, TTRecurrent

if TYPE_CHECKING:
    from exporters.graph import Builder

# class -> op, its gates as places in torch's order, its attributes
_OPS: dict[type[TTRecurrent], tuple[str, tuple[int, ...], dict[str, int | list[str]]]] = {
    TTRNN: ("RNN", (0,), {"activations": ["Tanh"]}),
    TTGRU: ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    TTLSTM: ("LSTM", (0, 3, 1, 2), {}),
}


def emit(graph: Builder, rnn: TTRecurrent, gates: ir.Value, lengths: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Outputs [time, batch, hidden], 0 past a clip's length, and the last h [batch, hidden].

    gates: [time, batch, num_gates * hidden], in torch's order.
    """
    op_type, order, attributes = _OPS[type(rnn)]
    size = rnn.hidden_size

    def reordered(rows: Tensor) -> Tensor:
        return torch.cat([rows[gate * size : (gate + 1) * size] for gate in order])

    identity = reordered(torch.eye(rnn.num_gates * size))
    weight = reordered(rnn.weight_hh.detach())
    bias_hh = torch.zeros(rnn.num_gates * size) if rnn.bias_hh is None else rnn.bias_hh.detach()
    bias = torch.cat([torch.zeros_like(bias_hh), reordered(bias_hh)])
    outputs, last, *_ = graph.op_outputs(
        op_type,
        gates,
        graph.constant(identity[None], "rnn.identity"),
        graph.constant(weight[None], "rnn.weight_hh"),
        graph.constant(bias[None], "rnn.bias"),
        lengths,
        num=2,
        hidden_size=size,
        **attributes,
    )
    directions = graph.constant([1], "direction_axis")
    first = graph.constant([0], "first_axis")
    return graph.op("Squeeze", outputs, directions), graph.op("Squeeze", last, first)

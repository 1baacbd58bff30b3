"""The sequential part as ONNX's own RNN, GRU and LSTM ops, fed with projected gates through identity input weights.

The ops order their gates otherwise than torch (GRU z, r, h for r, z, n; LSTM i, o, f, c for i, f, g, o); the identity
and the recurrent weights are reordered alike. A GRU always states linear_before_reset: left out, ONNX Runtime's CUDA
provider takes it and computes with another formula than the CPU.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn

from exporters.builder import Builder
from ttmodels.cells import TTCell, TTGRUCell, TTLSTMCell, TTRNNCell

# class -> op, its gates as places in torch's order, its attributes
_OPS: dict[type[TTCell], tuple[str, tuple[int, ...], dict[str, int | list[str]]]] = {
    TTRNNCell: ("RNN", (0,), {"activations": ["Tanh"]}),
    TTGRUCell: ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    TTLSTMCell: ("LSTM", (0, 3, 1, 2), {}),
}


def emit(graph: Builder, cell: nn.Module, gates: ir.Value, lengths: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Outputs [time, batch, hidden], 0 past a clip's length, and the last h [batch, hidden].

    gates: [time, batch, num_gates * hidden], in torch's order.
    """
    if type(cell) not in _OPS or not isinstance(cell, TTCell) or not isinstance(cell.hidden, nn.Linear):
        raise ValueError(f"expected a cell of {', '.join(kind.__name__ for kind in _OPS)}, dense inside, got {cell}")
    op_type, order, attributes = _OPS[type(cell)]
    size = cell.hidden_size

    def reordered(rows: Tensor) -> Tensor:
        return torch.cat([rows[gate * size : (gate + 1) * size] for gate in order])

    identity = reordered(torch.eye(cell.num_gates * size))
    weight = reordered(cell.hidden.weight.detach())
    bias_hh = torch.zeros(cell.num_gates * size) if cell.hidden.bias is None else cell.hidden.bias.detach()
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

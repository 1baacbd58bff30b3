"""Activations as standard ops."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from exporters.builder import Builder
from ttmodels import activations
from ttmodels.activations import Activation

_OPS: dict[Activation, tuple[str, dict[str, Any]]] = {
    torch.tanh: ("Tanh", {}),
    torch.sigmoid: ("Sigmoid", {}),
    activations.hard_sigmoid: ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    torch.relu: ("Relu", {}),
    functional.elu: ("Elu", {}),
    torch.selu: ("Selu", {}),
    functional.gelu: ("Gelu", {}),
    functional.softplus: ("Softplus", {}),
    functional.softsign: ("Softsign", {}),
}


def emit(graph: Builder, activation: Activation, value: ir.Value) -> ir.Value:
    """activation(value).

    Raises:
        ValueError: a function that is none of `ttmodels.activations`.
    """
    if activation is activations.linear:
        return value
    if activation is functional.silu:
        return graph.op("Mul", value, graph.op("Sigmoid", value))
    if activation not in _OPS:
        raise ValueError(f"activation: expected one of {', '.join(activations.ACTIVATIONS)}, got {activation!r}")
    op_type, attributes = _OPS[activation]
    return graph.op(op_type, value, **attributes)

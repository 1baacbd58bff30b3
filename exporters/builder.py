"""A growing graph of standard ONNX ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape


class Builder:
    """Nodes and initializers in the order in which they were asked for.

    Args:
        prefix: goes before the names of values, which must differ between a graph and the body of one of its nodes.
    """

    def __init__(self, prefix: str = "") -> None:
        self.tape = Tape()
        self._prefix = prefix
        self._num_values = 0

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.op_outputs(op_type, *inputs, num=1, **attributes)[0]

    def op_outputs(self, op_type: str, *inputs: ir.Value | None, num: int, **attributes: Any) -> tuple[ir.Value, ...]:
        outputs = [ir.Value(name=self._value_name(op_type)) for _ in range(num)]
        return tuple(self.tape.op_multi_out(op_type, inputs, attributes, outputs=outputs))

    def constant(self, array: np.ndarray | torch.Tensor | list[int], name: str) -> ir.Value:
        """A named initializer; lists are int64 shapes."""
        values = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
        return self.tape.initializer(ir.tensor(np.asarray(values, order="C")), name=self._unused(name))

    def _unused(self, name: str) -> str:
        taken = {value.name for value in self.tape.initializers}
        return name if name not in taken else self._unused(f"{name}_")

    def _value_name(self, op_type: str) -> str:
        self._num_values += 1
        return f"{self._prefix}{op_type}_{self._num_values}"


def tensor(name: str, dtype: ir.DataType, *dims: int | str) -> ir.Value:
    """A value with a type and a shape: an input of a graph."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def named(value: ir.Value, name: str, dtype: ir.DataType, *dims: int | str) -> ir.Value:
    """The value with a name, a type and a shape of its own: an output of a graph."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(dims)
    return value

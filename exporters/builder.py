"""A growing graph of standard ONNX ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape


class Builder:
    """Nodes and initializers in the order in which they were asked for."""

    def __init__(self) -> None:
        self.tape = Tape()

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes)

    def op_outputs(self, op_type: str, *inputs: ir.Value | None, num: int, **attributes: Any) -> tuple[ir.Value, ...]:
        return tuple(self.tape.op_multi_out(op_type, inputs, attributes, num_outputs=num))

    def constant(self, array: np.ndarray | torch.Tensor | list[int], name: str) -> ir.Value:
        """A named initializer; lists are int64 shapes."""
        values = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(values)), name=self._unused(name))

    def _unused(self, name: str) -> str:
        taken = {value.name for value in self.tape.initializers}
        return name if name not in taken else self._unused(f"{name}_")

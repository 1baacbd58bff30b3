"""The initializers of a graph: parameters, and what is none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.folding import bodies

_RECURRENT = {"RNN", "GRU", "LSTM"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_NO_WEIGHTS = {TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING}


@dataclass(frozen=True)
class Initializers:
    """Those of a graph and of its bodies, by what they are."""

    parameters: tuple[onnx.TensorProto, ...]
    identities: tuple[onnx.TensorProto, ...]
    """Input weights of a recurrence that only hand its gates on, in the op's order: nothing that was learnt."""
    constants: tuple[onnx.TensorProto, ...]
    """Shapes, axes, and other whole numbers and flags that are no weights."""


def initializers(graph: onnx.GraphProto, folder: Path | None = None) -> Initializers:
    """Tell parameters from what is no parameter.

    Args:
        folder: where weights lie that the file keeps elsewhere.
    """
    graphs = [graph, *bodies(graph)]
    entering = {node.input[1] for each in graphs for node in each.node if node.op_type in _RECURRENT}
    parameters, identities, constants = [], [], []
    for weight in (weight for each in graphs for weight in each.initializer):
        if weight.data_type in _NO_WEIGHTS or (not weight.dims and weight.data_type not in _FLOATS):
            constants.append(weight)
        elif weight.name in entering and _hands_on(numpy_helper.to_array(weight, str(folder or ""))):
            identities.append(weight)
        else:
            parameters.append(weight)
    return Initializers(tuple(parameters), tuple(identities), tuple(constants))


def _hands_on(weight: np.ndarray) -> bool:
    """Whether the weights [directions, gates, inputs] only reorder their input."""
    return weight.shape[1] == weight.shape[2] and all(
        ((weight == 0) | (weight == 1)).all() and (weight.sum(axis) == 1).all() for axis in (1, 2)
    )


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Of all initializers of a graph and of its bodies, each once."""
    return num_bytes([weight for each in (graph, *bodies(graph)) for weight in each.initializer])


def num_bytes(weights: Iterable[onnx.TensorProto]) -> int:
    return sum(math.prod(weight.dims) * item_bytes(weight.data_type) for weight in weights)


def num_values(weights: Iterable[onnx.TensorProto]) -> int:
    return sum(math.prod(weight.dims) for weight in weights)


def item_bytes(elem_type: int) -> int:
    """Of a value of one of ONNX's element types."""
    return helper.tensor_dtype_to_np_dtype(elem_type).itemsize

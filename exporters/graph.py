"""The graph of a ClipClassifier: uint8 frames and lengths in, logits out. Batch and time are dynamic.

frames -> projection -> RNN / GRU / LSTM -> head -> logits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters import projection, recurrence
from exporters.builder import Builder
from service import __version__
from ttmodels.cells import TTCell
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan

OPSET = 21
IR_VERSION = 10
"""The oldest that knows OPSET, so that older runtimes open the file too."""


def build(model: ClipClassifier, plan: Plan) -> ir.Model:
    """The model's graph with its train contracted by `plan`; weights are copied from the model as they are now."""
    sampling, hidden, classes = model.config.sampling, model.config.hidden_size, len(model.config.labels)
    frames = _tensor("frames", ir.DataType.UINT8, "batch", "time", sampling.height, sampling.width, 3)
    lengths = _tensor("lengths", ir.DataType.INT32, "batch")
    graph = Builder()

    gates = projection.emit_pixels(
        graph, model.projection, plan, frames, model.pixel_scale, model.pixel_shift, "projection"
    )
    gates = graph.op("Transpose", gates, perm=[1, 0, 2])
    cell = model.rnn.cells[0]
    assert isinstance(cell, TTCell)
    outputs, last = recurrence.emit(graph, cell, gates, lengths)
    weight = graph.constant(model.head.weight.T, "head.weight")
    bias = graph.constant(model.head.bias, "head.bias")
    steps = graph.op("Transpose", graph.op("Add", graph.op("MatMul", outputs, weight), bias), perm=[1, 0, 2])
    logits, over_time = _pool(graph, model, frames, lengths, steps, graph.op("Gemm", last, weight, bias))
    _name(logits, "logits", "batch", classes)
    _name(over_time, "logits_over_time", "batch", "time", classes)
    _name(outputs, "hidden", "time", "batch", hidden)
    return ir.Model(
        ir.Graph(
            [frames, lengths],
            [logits, over_time],
            nodes=graph.tape.nodes,
            initializers=graph.tape.initializers,
            opset_imports={"": OPSET},
            name="ttvideo",
        ),
        ir_version=IR_VERSION,
        producer_name="ttvideo",
        producer_version=__version__,
    )


def _pool(
    graph: Builder, model: ClipClassifier, frames: ir.Value, lengths: ir.Value, steps: ir.Value, last: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """A clip's logits [batch, classes], and those over time [batch, time, classes], the last repeated past its end."""
    axis_1, axis_2 = graph.constant([1], "axis_1"), graph.constant([2], "axis_2")
    num_steps = graph.op("Squeeze", graph.op("Shape", frames, start=1, end=2))
    zero, one = graph.constant(np.array(0), "zero"), graph.constant(np.array(1), "one")
    position = graph.op("Cast", graph.op("Range", zero, num_steps, one), to=ir.DataType.INT32)
    inside = graph.op("Unsqueeze", graph.op("Less", position, graph.op("Unsqueeze", lengths, axis_1)), axis_2)
    over_time = graph.op("Where", inside, steps, graph.op("Unsqueeze", last, axis_1))
    if model.config.pooling == "last":
        return last, over_time
    kept = graph.op("Mul", steps, graph.op("Cast", inside, to=ir.DataType.FLOAT))
    count = graph.op("Unsqueeze", graph.op("Cast", lengths, to=ir.DataType.FLOAT), axis_1)
    return graph.op("Div", graph.op("ReduceSum", kept, axis_1, keepdims=0), count), over_time


def _tensor(name: str, dtype: ir.DataType, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def _name(value: ir.Value, name: str, *dims: int | str) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(dims)

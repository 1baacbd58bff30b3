"""The graph of a ClipClassifier: uint8 frames and lengths in, logits out. Batch and time are dynamic.

frames -> Cast -> one MatMul a factor -> + bias -> RNN / GRU / LSTM -> head -> logits. Scaling and normalising are
folded into the last core and the bias: W((x / 255 - mean) / std) + b.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from exporters import recurrence
from exporters.builder import Builder
from service import __version__
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan, Route, contract

OPSET = 21
IR_VERSION = 10
"""The oldest that knows OPSET, so that older runtimes open the file too."""


def build(model: ClipClassifier, plan: Plan) -> ir.Model:
    """The model's graph with its train contracted by `plan`; weights are copied from the model as they are now."""
    sampling, hidden, classes = model.config.sampling, model.config.hidden_size, len(model.config.labels)
    frames = _tensor("frames", ir.DataType.UINT8, "batch", "time", sampling.height, sampling.width, 3)
    lengths = _tensor("lengths", ir.DataType.INT32, "batch")
    graph = Builder()

    gates = _project(graph, model, plan, frames)
    outputs, last = recurrence.emit(graph, model.rnn.cells[0], gates, lengths)
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


def _project(graph: Builder, model: ClipClassifier, plan: Plan, frames: ir.Value) -> ir.Value:
    """Gates of all frames of all clips, [time, batch, num_gates * hidden]."""
    layer = model.projection
    route, shape = Route.of(plan, layer.shape), layer.shape
    cores = [core.detach().double() for core in layer.cores]
    scale, shift = model.pixel_scale.double(), model.pixel_shift.double()
    pixels = graph.op("Cast", frames, to=ir.DataType.FLOAT)
    bias = torch.zeros(shape.out_features, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    constant_frame = shift.repeat(shape.in_features // 3)
    bias = bias + route.apply(constant_frame, cores)
    channels, rest = shape.input_modes[-1], shape.input_modes[-1] % 3
    if rest == 0:
        cores[-1] = cores[-1] * scale.repeat(channels // 3)[None, :, None, None]
    elif bool((scale == scale[0]).all()):
        cores[-1] = cores[-1] * scale[0]
    else:  # the last mode cuts through the channels: no core to fold a scale per channel into
        pixels = graph.op("Mul", pixels, graph.constant(scale.float(), "pixel_scale"))

    matrices = zip(route.steps, route.matrices(cores), strict=True)
    gates = contract(
        pixels,
        [graph.constant(matrix.float(), f"factor_{step.factor}") for step, matrix in matrices],
        route.steps,
        matmul=lambda left, right: graph.op("MatMul", left, right),
        reshape=lambda value, view: graph.op("Reshape", value, graph.constant(list(view), "view")),
    )
    batch_and_time = graph.op("Shape", frames, start=0, end=2)
    full_shape = graph.op("Concat", batch_and_time, graph.constant([shape.out_features], "gates_size"), axis=0)
    gates = graph.op("Add", graph.op("Reshape", gates, full_shape), graph.constant(bias.float(), "gates_bias"))
    return graph.op("Transpose", gates, perm=[1, 0, 2])


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

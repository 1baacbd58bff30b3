"""The train as MatMuls: pixels in, gates out.

Scaling and normalising are folded into the last core and the bias: W((x / 255 - mean) / std) + b.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from exporters.builder import Builder
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan, Route, contract
from ttmodels.linear import TTLinear


def emit_pixels(graph: Builder, model: ClipClassifier, plan: Plan, frames: ir.Value) -> ir.Value:
    """Gates of all frames of all clips, [time, batch, num_gates * hidden], from uint8 [batch, time, H, W, 3]."""
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


def emit(graph: Builder, layer: TTLinear, plan: Plan, value: ir.Value, name: str) -> ir.Value:
    """x W + b of floats, without the layer's activation; `name` goes before the names of the weights.

    Shape: [..., N] -> [..., M].
    """
    route = Route.of(plan, layer.shape)
    cores = [core.detach().double() for core in layer.cores]
    full_shape = graph.op(
        "Concat",
        graph.op("Shape", value, end=-1),
        graph.constant([layer.out_features], "out_features"),
        axis=0,
    )
    value = contract(
        value,
        [
            graph.constant(matrix.float(), f"{name}.factor_{step.factor}")
            for step, matrix in zip(route.steps, route.matrices(cores), strict=True)
        ],
        route.steps,
        matmul=lambda left, right: graph.op("MatMul", left, right),
        reshape=lambda value, view: graph.op("Reshape", value, graph.constant(list(view), "view")),
    )
    value = graph.op("Reshape", value, full_shape)
    return value if layer.bias is None else graph.op("Add", value, graph.constant(layer.bias, f"{name}.bias"))

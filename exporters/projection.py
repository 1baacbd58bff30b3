"""The train as MatMuls: pixels or floats in, gates out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from exporters import quantize
from exporters.builder import Builder, tensor
from exporters.quantize import PixelTrain, Precision
from ttmodels.contraction import Plan, Route, contract
from ttmodels.linear import TTLinear


@dataclass(frozen=True)
class Reading:
    """How frames meet the trains that read them.

    precision: of the trains, see `exporters.quantize`; what comes out is float32.
    by_clip: one clip after the other, in a Scan, so that what lies between two products stays in the processor's
        caches: on a CPU a third faster for a batch of 16, and no slower for one clip.
    """

    plan: Plan
    precision: Precision = "fp32"
    by_clip: bool = False


def emit(graph: Builder, layer: TTLinear, plan: Plan, value: ir.Value, name: str) -> ir.Value:
    """x W + b of floats, without the layer's activation; `name` goes before the names of the weights.

    Shape: float [..., N] -> [..., M].
    """
    route = Route.of(plan, layer.shape)
    matrices = route.matrices([core.detach().double() for core in layer.cores])
    weights = _weights(graph, route, [matrix.float() for matrix in matrices], name)
    value = _view(graph, graph, _contract(graph, graph, route, weights, value), value, 1, route)
    if layer.bias is None:
        return value
    return graph.op("Add", value, graph.constant(layer.bias, f"{name}.bias"))


def emit_pixels(
    graph: Builder,
    layer: TTLinear,
    reading: Reading,
    frames: ir.Value,
    scale: Tensor,
    shift: Tensor,
    name: str,
) -> ir.Value:
    """The same of pixels, each meant as scale * pixel + shift by its channel; scale and shift are [channels].

    Shape: uint8 [..., height, width, channels] -> float [..., M].
    """
    train = quantize.pixel_train(layer, reading.plan, scale, shift, reading.precision)
    weights = _weights(graph, train.route, train.matrices, name)
    if not reading.by_clip:
        return _project(graph, graph, train, weights, frames, name)
    assert frames.shape is not None
    rest = [size if isinstance(size, int) else str(size) for size in frames.shape[1:]]
    body, prefix = Builder(f"{name}.clip."), f"{name}.clip"
    clip = tensor(prefix, ir.DataType.UINT8, *rest)
    projected = _project(body, graph, train, weights, clip, name)
    projected.type = ir.TensorType(ir.DataType.FLOAT)
    projected.shape = ir.Shape([*rest[:-3], layer.out_features])
    inner = ir.Graph([clip], [projected], nodes=body.tape.nodes, name=prefix)
    return graph.op("Scan", frames, body=inner, num_scan_inputs=1)


def _project(
    graph: Builder, outer: Builder, train: PixelTrain, weights: Sequence[ir.Value], frames: ir.Value, name: str
) -> ir.Value:
    """Nodes go into `graph`, constants into `outer`, which is around it or the same."""
    dtype = train.matrices[0].dtype
    value = frames
    if dtype == torch.float16:  # centred: see `exporters.quantize`
        unit = outer.constant(torch.tensor(train.unit, dtype=dtype), f"{name}.unit")
        zero = outer.constant(torch.tensor(train.zero, dtype=torch.uint8), f"{name}.zero")
        value = graph.op("DequantizeLinear", value, unit, zero)
    elif dtype == torch.float32:
        value = graph.op("Cast", value, to=ir.DataType.FLOAT)
    if train.channel_scale is not None:
        value = graph.op("Mul", value, outer.constant(train.channel_scale.to(dtype), f"{name}.pixel_scale"))
    value = _contract(graph, outer, train.route, weights, value)
    value = _view(graph, outer, value, frames, 3, train.route)
    if dtype == torch.float16:
        value = graph.op("Cast", value, to=ir.DataType.FLOAT)
    if train.scale is not None:
        value = graph.op("Mul", value, outer.constant(train.scale, f"{name}.scale"))
    return graph.op("Add", value, outer.constant(train.bias, f"{name}.bias"))


def _weights(graph: Builder, route: Route, matrices: Sequence[Tensor], name: str) -> list[ir.Value]:
    pairs = zip(route.steps, matrices, strict=True)
    return [graph.constant(matrix, f"{name}.factor_{step.factor}") for step, matrix in pairs]


def _contract(graph: Builder, outer: Builder, route: Route, weights: Sequence[ir.Value], value: ir.Value) -> ir.Value:
    """The products of a plan on views."""

    def matmul(left: ir.Value, right: ir.Value) -> ir.Value:
        if right.dtype != ir.DataType.INT8:
            return graph.op("MatMul", left, right)
        return graph.op("Cast", graph.op("MatMulInteger", left, right), to=ir.DataType.FLOAT)

    return contract(
        value,
        weights,
        route.steps,
        matmul=matmul,
        reshape=lambda value, view: graph.op("Reshape", value, outer.constant(list(view), "view")),
    )


def _view(graph: Builder, outer: Builder, value: ir.Value, source: ir.Value, inner_axes: int, route: Route) -> ir.Value:
    """The result of the products as [*leading, M], led by all axes of `source` but its last `inner_axes`."""
    size = route.shape.out_features
    if source.shape is not None and len(source.shape) == inner_axes + 1:
        return graph.op("Reshape", value, outer.constant([-1, size], "rows"))
    leading = graph.op("Shape", source, end=-inner_axes)
    return graph.op("Reshape", value, graph.op("Concat", leading, outer.constant([size], "out_features"), axis=0))

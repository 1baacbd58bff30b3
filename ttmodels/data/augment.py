"""Changes to training clips that leave their meaning, or change it in a known way."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ttmodels.config import TrainConfig

CANDIDATES = 3
"""Frames decoded for each one of a clip, where time varies; odd, so that the middle one is the frame that serving sees.
"""

_SIDED = re.compile(r"left|right|clockwise|\b(l|r|cw|ccw|east|west)\b|^.$")
"""In a label, with spaces: it may name a side, or be a letter or digit."""
_SHARES = ("crop", "time_jitter", "gain", "contrast", "saturation", "erase")
"""Fields of Augmentation and of TrainConfig."""
_GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601: what red, green and blue have of the luma."""
_CROP_ASPECT = 4 / 3
"""A crop's aspect ratio is at most so many times the frame's, or its inverse."""
_ERASED = (0.02, 0.2)
"""Share of the frame that an erased box has."""
_ERASED_ASPECT = 3.0


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a clip in training. What it does to one frame it does to all frames of the clip.

    Every change has draws of its own, so that one that is turned on leaves the others as they were.

    Args:
        num_frames: of a clip.
        mirror_horizontal: the label that each label becomes when left and right change places, of every second clip;
            None forbids it.
        mirror_vertical: the same for top and bottom.
        crop: smallest share of the frame's area that is kept, and made as large as the frame again.
        time_jitter: a clip shows at least 1 - time_jitter of its time, from any start that leaves room for it.
        gain: brightness is multiplied by a factor from 1 - gain to 1 + gain.
        contrast: as gain, the distance of each value from the clip's mean.
        saturation: as gain, the distance of each value from the pixel's grey.
        erase: share of the clips in which one box becomes one random colour.

    Reference: crops as in Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6; boxes as in Zhong et
    al., Random Erasing Data Augmentation, AAAI 2020, but smaller (2 to 20 % of the frame) and of one colour.
    """

    num_frames: int
    mirror_horizontal: np.ndarray | None = None
    """int64 [classes]."""
    mirror_vertical: np.ndarray | None = None
    crop: float = 1.0
    time_jitter: float = 0.0
    gain: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig, num_frames: int, labels: Sequence[str]) -> Self:
        """That which a run asks for.

        Raises:
            ValueError: a mirror that swaps what are no two labels.
        """
        horizontal = swapped_labels(labels, config.mirror_horizontal)
        vertical = swapped_labels(labels, config.mirror_vertical)
        return cls(num_frames, horizontal, vertical, **{name: getattr(config, name) for name in _SHARES})

    @property
    def candidates(self) -> int:
        """Frames to choose from, for each one of a clip."""
        return CANDIDATES if self.time_jitter else 1

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return str(self) != "none"

    def __call__(self, clip: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A changed copy.

        Args:
            clip: uint8 [candidates, height, width, 3], evenly spread over the time of num_frames; one each, or more.
            target: int64 [] or, where clips have several labels, uint8 [classes].

        Returns:
            uint8 [num_frames, height, width, 3], and the target.
        """
        when, where, mirrors, colours, box = (rng.random(n) for n in (3, 4, 2, 3, 8))
        frames = torch.from_numpy(clip[self._times(len(clip), when)])
        if self.crop < 1:
            frames = self._cropped(frames, where)
        for swaps, drawn, axis in ((self.mirror_horizontal, mirrors[0], 2), (self.mirror_vertical, mirrors[1], 1)):
            if swaps is not None and drawn < 0.5:
                frames, target = frames.flip(axis), _swapped(target, swaps)
        if self.gain or self.contrast or self.saturation:
            frames = self._coloured(frames, colours)
        if box[0] < self.erase:
            rows, columns = _box(frames.shape[1:3], _between(*_ERASED, box[1]), _ERASED_ASPECT, box[2:5])
            frames[:, rows, columns] = torch.from_numpy((box[5:] * 256).astype(np.uint8))
        return frames.contiguous().numpy(), target

    def _times(self, num_candidates: int, drawn: np.ndarray) -> np.ndarray:
        """Which candidates: the middle one of each part of the time shown, but for a phase that all have alike."""
        span = 1 - self.time_jitter * drawn[0]
        start = (1 - span) * drawn[1]
        phase = drawn[2] if self.time_jitter else 0.5
        share = start + span * (np.arange(self.num_frames) + phase) / self.num_frames
        return np.asarray(share * num_candidates, np.int64).clip(0, num_candidates - 1)

    def _cropped(self, frames: Tensor, drawn: np.ndarray) -> Tensor:
        size = frames.shape[1:3]
        rows, columns = _box(size, _between(self.crop, 1, drawn[0]), _CROP_ASPECT, drawn[1:])
        part = frames[:, rows, columns].permute(0, 3, 1, 2)
        return interpolate(part, tuple(size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    def _coloured(self, frames: Tensor, drawn: np.ndarray) -> Tensor:
        gain, contrast, saturation = (
            float(_between(1 - share, 1 + share, draw))
            for share, draw in zip((self.gain, self.contrast, self.saturation), drawn, strict=True)
        )
        mean = float(frames.float().mean()) if self.contrast else 0.0
        changed = torch.empty_like(frames)
        for before, after in zip(frames, changed, strict=True):  # a frame's values stay in a cache
            values = before.float()
            if self.saturation:
                grey = values @ torch.tensor(_GREY)
                values.mul_(saturation).add_(grey[..., None], alpha=1 - saturation)
            values.mul_(gain * contrast).add_(gain * (1 - contrast) * mean + 0.5)
            after.copy_(values.clamp_(0, 255))
        return changed

    def __str__(self) -> str:
        mirrors = [("left to right", self.mirror_horizontal), ("top to bottom", self.mirror_vertical)]
        said = [f"mirrored {axis}" for axis, swaps in mirrors if swaps is not None]
        said += [
            f"{name.replace('_', ' ')} {value:g}"
            for name in _SHARES
            if (value := getattr(self, name)) != getattr(Augmentation, name)
        ]
        return ", ".join(said) or "none"


def _swapped(target: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A clip's class, or which labels hold for it, by the label that each becomes; that one becomes it in turn."""
    return np.asarray(target[labels] if target.ndim else labels[target])


def _between(low: float, high: float, drawn: float) -> float:
    return low + (high - low) * drawn


def _box(size: Sequence[int], share: float, aspect: float, drawn: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a box with about that share of the area, of an aspect ratio and a place drawn."""
    ratio = math.exp(_between(-math.log(aspect), math.log(aspect), drawn[0]))
    box = []
    for whole, length, place in zip(size, (math.sqrt(share * ratio), math.sqrt(share / ratio)), drawn[1:], strict=True):
        pixels = min(max(round(whole * length), 1), whole)
        first = int(place * (whole - pixels + 1))
        box.append(slice(first, first + pixels))
    return box[0], box[1]


def swapped_labels(labels: Sequence[str], pairs: str | None) -> np.ndarray | None:
    """Targets after a mirror: "left=right,a=b" swaps these, "" swaps none, "never" or None forbids the mirror. "auto"
    swaps none and forbids it where a label may name a side.

    Raises:
        ValueError: a pair that does not name two labels.
    """
    if pairs is None or pairs == "never" or (pairs == "auto" and sided(labels)):
        return None
    swapped = np.arange(len(labels))
    for pair in filter(None, pairs.split(",")) if pairs != "auto" else ():
        names = pair.split("=")
        if len(names) != 2 or not set(names) <= set(labels):
            raise ValueError(f"expected pairs LABEL=LABEL of {', '.join(labels)}, got {pair!r}")
        a, b = labels.index(names[0]), labels.index(names[1])
        swapped[a], swapped[b] = b, a
    return swapped


def sided(labels: Sequence[str]) -> list[str]:
    """The labels that a mirror may make wrong: they may name a side or a turn, or are one letter or digit."""
    return [label for label in labels if _SIDED.search(re.sub(r"[\W_]+", " ", label).strip().lower())]

"""Changes to training clips that leave their meaning, or change it in a known way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a clip in training, each with an even chance.

    Args:
        mirror_horizontal: the label that each label becomes when left and right change places; None forbids it.
        mirror_vertical: the same for top and bottom.
        gain: brightness is multiplied by a factor drawn from 1 - gain to 1 + gain.
    """

    mirror_horizontal: np.ndarray | None = None
    """int64 [classes]."""
    mirror_vertical: np.ndarray | None = None
    gain: float = 0.0

    def __call__(
        self, frames: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [batch, time, height, width, 3] and targets, int64 [batch] or uint8 [batch, classes] where clips
        have several labels, changed clip by clip in place."""
        for i in range(len(frames)):
            if self.mirror_horizontal is not None and rng.random() < 0.5:
                frames[i] = frames[i, :, :, ::-1].copy()
                targets[i] = _swapped(targets[i], self.mirror_horizontal)
            if self.mirror_vertical is not None and rng.random() < 0.5:
                frames[i] = frames[i, :, ::-1].copy()
                targets[i] = _swapped(targets[i], self.mirror_vertical)
            if self.gain:
                table = np.arange(256) * rng.uniform(1 - self.gain, 1 + self.gain)
                frames[i] = (table + 0.5).clip(0, 255).astype(np.uint8)[frames[i]]
        return frames, targets


def _swapped(target: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A clip's class, or which labels hold for it, by the label that each becomes; that one becomes it in turn."""
    return np.asarray(target[labels] if target.ndim else labels[target])


def swapped_labels(labels: Sequence[str], pairs: str | None) -> np.ndarray | None:
    """Targets after a mirror: "left=right,a=b" swaps these, "" swaps none, None forbids the mirror.

    Raises:
        ValueError: a pair that does not name two labels.
    """
    if pairs is None:
        return None
    swapped = np.arange(len(labels))
    for pair in filter(None, pairs.split(",")):
        names = pair.split("=")
        if len(names) != 2 or not set(names) <= set(labels):
            raise ValueError(f"expected pairs LABEL=LABEL of {', '.join(labels)}, got {pair!r}")
        a, b = labels.index(names[0]), labels.index(names[1])
        swapped[a], swapped[b] = b, a
    return swapped

"""The clips that a model was most wrong about, as strips of frames."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import numpy as np

from service.engine.session import holding
from ttmodels.data.decoded import DecodedClips
from ttmodels.predictions import Predictions

NUM_CLIPS = 10
NUM_FRAMES = 8
GAP = 2
"""Pixels between two frames."""


class Worst(NamedTuple):
    """One of them."""

    picture: str
    """The strip's file."""
    clip: str
    """The video's."""
    true: str
    predicted: str
    loss: float
    right: bool


def worst_clips(said: Predictions, clips: DecodedClips, temperature: float, folder: Path, name: str) -> list[Worst]:
    """Those with the highest loss, the highest first, each with a picture NAME-N.png in `folder`."""
    losses, chances = said.losses(temperature), said.probabilities(temperature)
    rows = np.argsort(-losses, kind="stable")[:NUM_CLIPS]
    found = []
    for number, (row, (frames, _)) in enumerate(zip(rows, clips.plain(rows[:, None]), strict=True), 1):
        picture = f"{name}-{number}.png"
        matplotlib.image.imsave(folder / picture, strip(frames[0]))
        held = holding(chances[row], said.task)
        true, predicted = (_words(said.labels, chances[row], chosen) for chosen in (said.truth[row], held))
        right = bool((held == said.truth[row]).all())
        found.append(Worst(picture, str(clips.clips.paths[row].resolve()), true, predicted, float(losses[row]), right))
    return found


def strip(frames: np.ndarray) -> np.ndarray:
    """Frames of a clip in a row, spread over its time.

    Shape: uint8 [time, height, width, 3] -> [height, 8 widths and 7 gaps, 3]; fewer of them where time is below 8.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, min(NUM_FRAMES, len(frames))).round().astype(int)]
    padded = np.pad(chosen, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


def _words(labels: tuple[str, ...], chances: np.ndarray, chosen: np.ndarray) -> str:
    found = zip(labels, chances, chosen, strict=True)
    return ", ".join(f"{label} ({chance:.2f})" for label, chance, holds in found if holds) or "none"

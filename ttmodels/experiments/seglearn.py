"""Which of seven shoulder exercises a subject does that no model has seen, from four seconds of a watch's signals.

Reference: Burns et al., Physiological Measurement 39 (2018).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ttmodels.data.seglearn import NUM_CHANNELS, SAMPLE_RATE, WatchSignals, load_watch
from ttmodels.experiments.frame import Data, Experiment, Fit, Split
from ttmodels.experiments.sequences import WindowsClassifier

SEGMENT = 4 * SAMPLE_RATE
WINDOW = 20
NUM_FOLDS = 5


def segments(signals: WatchSignals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four seconds each, every two seconds; float32 [segments, 200, 6] with int64 exercises and subjects."""
    cut = [
        np.lib.stride_tricks.sliding_window_view(series, SEGMENT, 0)[:: SEGMENT // 2].swapaxes(1, 2)
        for series in signals.series
    ]
    counts = [len(part) for part in cut]
    return np.concatenate(cut), signals.exercises.repeat(counts), signals.subjects.repeat(counts)


def folds(subjects: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each segment's subject; the seeds 0 to 4 test each subject once, and so do 5 to 9."""
    known = np.unique(subjects)
    shuffled = np.random.default_rng(seed // NUM_FOLDS).permutation(known)
    fold_of = {subject: (place - seed) % NUM_FOLDS for place, subject in enumerate(shuffled.tolist())}
    return np.array([fold_of[subject] for subject in subjects.tolist()])


class Seglearn(Experiment):
    name = "seglearn"
    about = (
        "The 140 series of ten subjects of the PyPI package seglearn, in segments of four seconds. Two subjects are "
        "tested, two are to stop by, six to train on: the seeds 0 to 4 test each subject once. A step has six values, "
        "too few for a train, so 20 steps (0.4 s) are one input of 120 values, for all models: 4x5x6 -> 4x4x4, rank 8; "
        "what is between hidden states is dense. The output is averaged over time, dropout .5. Training segments are "
        "made louder or softer on each channel, with noise. The dense models are torch's. By validation of seeds 0 to "
        "2, GRU .877, TT-GRU of rank 8 .871, of rank 4 .861, and .852 with a train of rank 4 between hidden states "
        "too, which has 1,959 parameters. TT stays a little behind dense, by less than the folds differ."
    )
    source = "the study that the data are from has .889 by subject with a convolutional LSTM, on 20 subjects"
    published: ClassVar = dict.fromkeys(("GRU", "TT-GRU", "LSTM", "TT-LSTM"), "-")
    fit = Fit(epochs=30, batch_size=32, learning_rate=3e-3, weight_decay=1e-2, patience=12)
    rank, dropout = 8, 0.5

    def load(self, folder: Path | None, seed: int) -> Data:
        return self._parted(load_watch(folder or Path("data/seglearn")), seed)

    def made(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        exercises, subjects = (part.ravel() for part in np.indices((7, 10)))
        times = np.arange(2 * SEGMENT)[:, None] / SAMPLE_RATE
        series = tuple(
            (np.sin(times * (exercise + 1) + rng.random(NUM_CHANNELS)) + rng.normal(size=(len(times), NUM_CHANNELS)))
            for exercise in exercises.tolist()
        )
        return self._parted(WatchSignals(series, exercises, subjects + 1, tuple("ABCDEFG")), seed)

    @staticmethod
    def _parted(signals: WatchSignals, seed: int) -> Data:
        """Fold 0 is tested, fold 1 is to stop by."""
        x, exercises, subjects = segments(signals)
        fold = folds(subjects, seed)
        known = x[fold > 1].reshape(-1, NUM_CHANNELS)
        x = ((x - known.mean(0)) / known.std(0)).astype(np.float32)

        def split(chosen: np.ndarray) -> Split:
            return torch.from_numpy(x[chosen]), torch.from_numpy(exercises[chosen])

        return Data(split(fold > 1), split(fold == 1), split(fold == 0))

    def model(self, label: str) -> nn.Module:
        return WindowsClassifier(label, WINDOW, (4, 5, 6), (4, 4, 4), self.rank, 7, self.dropout)

    def varied(self, x: Tensor) -> Tensor:
        """Each segment louder or softer on each channel, and with noise."""
        gain = 1 + 0.2 * torch.randn(len(x), 1, x.shape[2])
        return x * gain + 0.1 * torch.randn_like(x)

"""Watch signals of seven shoulder exercises, from the PyPI package seglearn.

Reference: Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch", Physiological Measurement 39 (2018).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
"""Of the file in seglearn 1.2.5."""
SAMPLE_RATE = 50
NUM_CHANNELS = 6


@dataclass(frozen=True)
class WatchSignals:
    """Series that each are one exercise of one subject, some twenty repetitions long."""

    series: tuple[np.ndarray, ...]
    """Acceleration in g and turning rate in rad/s, each on three axes; float32 [samples, 6] at 50 Hz."""
    exercises: np.ndarray
    """int64 [series], places in `labels`."""
    subjects: np.ndarray
    """int64 [series]; 1 to 10."""
    labels: tuple[str, ...]


def load_watch(folder: Path, *, sha256: str = SHA256) -> WatchSignals:
    """The series of the file in the folder, or below it.

    Raises:
        FileNotFoundError: with where to get it.
        ValueError: a file of another sha256; nothing of it is read, since pickles can run code.
    """
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise FileNotFoundError(
            f"expected {FILE} in {folder}; get it with `pip download --no-deps seglearn && unzip seglearn-*.whl` and "
            "name the folder seglearn"
        )
    raw = paths[0].read_bytes()
    if (digest := hashlib.sha256(raw).hexdigest()) != sha256:
        raise ValueError(f"{paths[0]}: expected sha256 {sha256}, as in seglearn 1.2.5, got {digest}")
    values = np.load(io.BytesIO(raw), allow_pickle=True).item()
    return WatchSignals(
        tuple(np.asarray(series, np.float32) for series in values["X"]),
        np.asarray(values["y"], np.int64),
        np.asarray(values["subject"], np.int64),
        tuple(values["y_labels"]),
    )

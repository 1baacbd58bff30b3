"""The five sets of the NIPS 2003 feature selection challenge, from the publisher's text files.

Reference: Guyon, Gunn, Ben-Hur, Dror, "Result analysis of the NIPS 2003 feature selection challenge", NIPS 2004.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np

NUM_FEATURES = {"arcene": 10_000, "dexter": 20_000, "dorothea": 100_000, "gisette": 5_000, "madelon": 500}
SPARSE = ("dexter", "dorothea")


def load_nips2003(folder: Path, name: str, split: Literal["train", "valid"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of a set; the challenge's test part never had public labels.

    Shape: [rows, features], float32 or, where all values are 0 or 1, uint8; int64 [rows], 0 for the label -1.

    Args:
        folder: holds NAME_train.data, NAME_train.labels and so on, plain or gzip, itself or in folders.

    Raises:
        FileNotFoundError: with where to get them.
        ValueError: a file that is not such text; names it.
    """
    path = found(folder, f"{name}_{split}.data", f"the set {name} of https://archive.ics.uci.edu/datasets")
    x = read_sparse(path, NUM_FEATURES[name]) if name in SPARSE else read_dense(path)
    signs = read_dense(found(folder, f"{name}_{split}.labels", "the same place"))[:, 0]
    if x.shape != (len(signs), NUM_FEATURES[name]) or not np.isin(signs, (-1, 1)).all():
        raise ValueError(
            f"{path}: expected {NUM_FEATURES[name]} features and a label -1 or 1 a row, got rows {list(x.shape)}, "
            f"{len(signs)} labels of the values {sorted(set(signs.tolist()))}"
        )
    return x, (signs > 0).astype(np.int64)


def found(folder: Path, name: str, source: str) -> Path:
    """The file of this name, or this name and .gz, in the folder or below it.

    Raises:
        FileNotFoundError: there is none; says from where to get it.
    """
    paths = sorted(p for p in folder.rglob(f"{name}*") if p.name in (name, f"{name}.gz"))
    if not paths:
        raise FileNotFoundError(f"expected {name} or {name}.gz in {folder}; get it from {source}")
    return paths[0]


def read_dense(path: Path) -> np.ndarray:
    """Numbers with blanks between them, as many a line; float32 [lines, numbers]."""
    try:
        return np.loadtxt(path, np.float32, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: expected a table of numbers, got one of which {error}") from error


def read_sparse(path: Path, num_features: int) -> np.ndarray:
    """A line a row of INDEX:VALUE, or of INDEX alone where the value is 1; indices are from 1 on.

    Shape: float32 [lines, num_features], or uint8 where all are indices alone.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="ascii") as file:
        rows = [line.split() for line in file]
    binary = not any(":" in entry for row in rows for entry in row)
    x = np.zeros((len(rows), num_features), np.uint8 if binary else np.float32)
    for number, (row, entries) in enumerate(zip(x, rows, strict=True), 1):
        for entry in entries:
            try:
                index, value = (int(entry), 1.0) if binary else _pair(entry)
            except ValueError:
                index, value = 0, 0.0
            if not 1 <= index <= num_features:
                raise ValueError(
                    f"{path}, line {number}: expected INDEX{'' if binary else ':VALUE'} with an index "
                    f"of 1 to {num_features}, got {entry!r}"
                )
            row[index - 1] = value
    return x


def _pair(entry: str) -> tuple[int, float]:
    index, value = entry.split(":")
    return int(index), float(value)

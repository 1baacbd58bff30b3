import hashlib
from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.seglearn import load_watch


def written(folder: Path) -> str:
    """A file as the package has it, and its sha256."""
    rng = np.random.default_rng(0)
    values = {
        "X": [rng.normal(size=(length, 6)) for length in (300, 250, 410)],
        "y": np.array([0, 2, 1]),
        "subject": np.array([7, 7, 10]),
        "side": np.array([1.0, 0.0, 1.0]),
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y_labels": ["PEN", "ABD", "FEL"],
    }
    path = folder / "data" / "watch_dataset.npy"
    path.parent.mkdir()
    np.save(path, np.array(values, dtype=object), allow_pickle=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_series_with_exercise_and_subject(tmp_path: Path) -> None:
    signals = load_watch(tmp_path, sha256=written(tmp_path))
    assert [series.shape for series in signals.series] == [(300, 6), (250, 6), (410, 6)]
    assert signals.series[0].dtype == np.float32
    assert [signals.labels[y] for y in signals.exercises] == ["PEN", "FEL", "ABD"]
    assert signals.subjects.tolist() == [7, 7, 10]


def test_another_file_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"watch_dataset.npy: expected sha256 eb122f23"):
        load_watch(tmp_path)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download --no-deps seglearn"):
        load_watch(tmp_path)

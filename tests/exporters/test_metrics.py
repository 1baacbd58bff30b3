"""Figures of an evaluation: which are taken into a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters import metrics
from service.manifest import Metrics
from tests.made import tiny_config
from ttmodels import checkpoint
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.evaluate import Figures

TRUE: dict[str, Any] = {
    "split": "test",
    "num_clips": 6,
    "accuracy": 0.5,
    "confusion": ((1, 1, 0), (0, 1, 1), (1, 0, 1)),
}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """Of a model with three labels."""
    checkpoint.save(tmp_path / "a.safetensors", ClipClassifier(tiny_config()), TrainConfig(), Progress())
    return checkpoint.load(tmp_path / "a.safetensors")


def written(path: Path, **changes: object) -> Path:
    path.write_text(Figures(**(TRUE | changes)).model_dump_json())
    return path


def test_those_of_the_checkpoint_are_taken(
    saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.json", checkpoint_sha256=saved.sha256)
    other = written(tmp_path / "b.json", checkpoint_sha256=saved.sha256, split="unseen", confusion=None)
    found = metrics.read([path, other], saved)
    assert found == [Metrics(**TRUE), Metrics(**(TRUE | {"split": "unseen", "confusion": None}))]
    assert {type(figures) for figures in found} == {Metrics}
    assert capsys.readouterr().err == ""


def test_older_ones_are_taken_with_a_note(
    saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(Metrics(**TRUE).model_dump_json())
    assert metrics.read([path], saved) == [Metrics(**TRUE)]
    assert f"note: {path} does not say which checkpoint it is of" in capsys.readouterr().err


def test_those_at_another_temperature_lose_what_depends_on_it(
    saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"loss": 0.7, "calibration_error": 0.1}
    path = written(tmp_path / "a.json", checkpoint_sha256=saved.sha256, **said)
    assert metrics.read([path], saved, 1.0) == metrics.read([path], saved) == [Metrics(**TRUE, **said)]
    assert capsys.readouterr().err == ""
    assert metrics.read([path], saved, 1.5) == [Metrics(**TRUE)]
    assert "at the temperature 1, are left out of a file with 1.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_sha256": "0" * 64}, "got those of another checkpoint, 0000"),
        ({"accuracy": 1.5}, "accuracy: expected a share from 0 to 1, got 1.5"),
        ({"accuracy": -0.1}, "accuracy: expected a share from 0 to 1, got -0.1"),
        ({"num_clips": 0}, "num_clips: expected at least 1, got 0"),
        ({"confusion": ((3, 0), (0, 3))}, r"confusion: expected 3 rows of 3, .* got rows of \[2, 2\]"),
        ({"confusion": ((1, 1, 1), (1, 1, 1), ())}, r"got rows of \[3, 3, 0\]"),
        ({"num_clips": 7}, "confusion: expected counts that sum to num_clips, 7, got a sum of 6"),
        ({"confusion": ((7, 0, 0), (-1, 0, 0), (0, 0, 0))}, "confusion: expected counts"),
    ],
)
def test_what_cannot_be_true_of_the_model_is_refused(
    changes: dict[str, Any], message: str, saved: Checkpoint, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.json", **({"checkpoint_sha256": saved.sha256} | changes))
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        metrics.read([path], saved)


def test_a_split_comes_once(saved: Checkpoint, tmp_path: Path) -> None:
    paths = [written(tmp_path / name, checkpoint_sha256=saved.sha256) for name in ("a.json", "b.json")]
    with pytest.raises(ValueError, match=r"b.json: expected each split once, got 'test' again"):
        metrics.read(paths, saved)

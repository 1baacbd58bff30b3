"""The end of a run: the temperature goes into the checkpoint, and the figures are those that it gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.made import random_classifier, tiny_config, write_folder
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.conclusion import conclude
from ttmodels.config import TrainConfig
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import DecodedClips
from ttmodels.data.report import data_report
from ttmodels.predictions import Predictions
from ttmodels.temperature import fit_temperature

LABELS = ("left", "right", "still")
HISTORY = [{"train_loss": 1.0, "valid_loss": 1.0, "valid_score": 0.5}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), LABELS, 9)


@pytest.mark.parametrize(("num_valid", "fitted"), [(24, True), (6, False)])
def test_a_temperature_is_fitted_where_there_are_clips_for_it(
    num_valid: int, fitted: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_classifier(tiny_config())
    checkpoint.save(tmp_path / "best.safetensors", model, TrainConfig(), Progress(best_epoch=1, data_set="made"))
    before = checkpoint.load(tmp_path / "best.safetensors")
    clips = DecodedClips(read_clips(folder), model.config.sampling, tmp_path / "cache")
    parts = {"train": clips, "valid": clips.take(range(num_valid)), "test": clips.take([0, 13, 26])}
    rng = np.random.default_rng(4)
    said = {
        name: Predictions(
            rng.normal(size=(len(parts[name]), 3), scale=9).astype(np.float32), parts[name].clips.targets, LABELS
        )
        for name in ("valid", "test")
    }
    conclude(tmp_path, HISTORY, said, parts, data_report(parts, {}, 0))

    best = checkpoint.load(tmp_path / "best.safetensors")
    temperature = best.progress.temperature
    assert temperature == fit_temperature(said["valid"])
    assert (temperature > 2) == fitted
    assert all((best.tensors[name] == tensor).all() for name, tensor in before.tensors.items())
    figures = json.loads((tmp_path / "test.json").read_text())
    assert figures["loss"] == said["test"].loss(temperature)
    assert figures["checkpoint_sha256"] == best.sha256 != before.sha256
    printed = capsys.readouterr().out
    page = tmp_path / "report" / "index.html"
    assert printed.endswith(f"report {page}\n")
    errors = [said["valid"].reliability(T).error for T in (1.0, temperature)]
    if fitted:
        assert f"calibration error on validation {errors[0]:.4f} before, {errors[1]:.4f} after" in printed
        assert f"divided by {temperature:.4g}" in page.read_text()
    else:
        assert "temperature 1: none was fitted on validation: expected at least 20 clips" in printed

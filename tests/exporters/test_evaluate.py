"""`ttmodels.evaluate` of a checkpoint and of its model files: the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from exporters.to_onnx import export
from service.engine.session import probabilities
from service.manifest import Manifest
from tests.made import random_classifier, tiny_config, write_folder
from tests.tolerances import PROBABILITY
from ttmodels import checkpoint, evaluate
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.config import TrainConfig
from ttmodels.evaluate import labelled_clips, open_model

TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right", "still"), 4)


def save(path: Path, **changes: object) -> Checkpoint:
    model = random_classifier(tiny_config(**changes))
    checkpoint.save(path, model, TrainConfig(), Progress(temperature=TEMPERATURE))
    return checkpoint.load(path)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_model_file_has_its_checkpoints_figures(
    streaming: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save(tmp_path / "a.safetensors", cell="lstm", pooling="mean")
    export(saved, tmp_path / "m.onnx", name="made", streaming=streaming, measure=False)
    found = []
    for name in ("a.safetensors", "m.onnx"):
        arguments = [str(tmp_path / name), "--data", str(folder), "--write", str(tmp_path / "figures.json")]
        assert evaluate.main(arguments) == 0
        assert "(without the temperature 2.5: loss " in capsys.readouterr().out
        found.append(json.loads((tmp_path / "figures.json").read_text()))
    of_checkpoint, of_file = found
    for name in ("loss", "calibration_error"):
        assert of_file.pop(name) == pytest.approx(of_checkpoint.pop(name), abs=PROBABILITY)
    assert of_file == of_checkpoint
    assert (of_file["num_clips"], of_file["checkpoint_sha256"]) == (12, saved.sha256)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_served_probabilities_are_those_of_the_temperature(task: str, folder: Path, tmp_path: Path) -> None:
    saved = save(tmp_path / "a.safetensors", task=task)
    manifest = export(saved, tmp_path / "m.onnx", name="made", measure=False)
    assert manifest.temperature == TEMPERATURE
    assert export(saved, tmp_path / "n.onnx", name="made", measure=False, temperature=1.25).temperature == 1.25
    source = tmp_path / "list.csv"
    source.write_text("path,label\n" + "".join(f"{folder}/{label}/0.mp4,{label}\n" for label in manifest.labels))
    model = open_model(tmp_path / "a.safetensors")
    with labelled_clips(source, manifest.labels, manifest.sampling, task=manifest.task) as clips:
        said = model.predict(clips, "test")
        frames, _ = next(clips.batches(3))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    logits, _ = session.run(None, {"frames": frames, "lengths": np.full(3, 6, np.int32)})
    served = probabilities(np.asarray(logits), Manifest.from_metadata(session.get_modelmeta().custom_metadata_map))
    assert served == pytest.approx(said.probabilities(model.temperature), abs=PROBABILITY)
    assert np.abs(served - said.probabilities(1.0)).max() > 100 * PROBABILITY


def test_what_is_no_model_of_clips_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "clips", ("left", "right"), 1)
    for name, message in (("gone.onnx", "expected a model file, found nothing at"), ("bad.onnx", "cannot load it")):
        (tmp_path / "bad.onnx").write_bytes(b"no")
        assert evaluate.main([str(tmp_path / name), "--data", str(tmp_path / "clips")]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1

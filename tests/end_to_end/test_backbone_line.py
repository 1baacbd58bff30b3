"""Clips -> training from a backbone's features -> one file in fp32 or int8 -> answers, as torch computes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from exporters import benchmark, inspect, int8_backbone, to_onnx
from service.manifest import Manifest
from service.video import decode_clip
from tests.made import write_folder
from tests.service.routes.test_stream import moving, write
from tests.serving import served
from tests.tolerances import PROBABILITY
from ttmodels import checkpoint, evaluate, train
from ttmodels.classifier import ClipClassifier
from ttmodels.data.clips import read_clips

pytestmark = pytest.mark.slow

LABELS = ("left", "right", "still")
PATIENCE_S = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a run, and models of it: fp32 for whole clips, int8 for clips in pieces."""
    root = tmp_path_factory.mktemp("backbone")
    clips = write_folder(root / "clips", LABELS, 4)
    size = ["--backbone", "efficientnet-lite0", "--backbone-features", "map", "--width", "64", "--height", "32"]
    fit = ["--difference", "--num-frames", "5", "--hidden", "8", "--pooling", "mean", "--epochs", "2", "--views", "2"]
    assert train.main(["--data", str(clips), "--out", str(root / "run"), *size, *fit]) == 0
    saved = str(root / "run" / "best.safetensors")
    for name, more in (("fp32", []), ("int8", ["--precision", "int8", "--streaming", "--evaluate", str(clips)])):
        bounds = ["--min-agreement", "0.5", "--max-probability-difference", "0.5", "--max-accuracy-loss", "0.5"]
        out = ["-o", str(root / "models" / name / "1" / "model.onnx"), *more, *(bounds if more else [])]
        assert to_onnx.main([saved, *out]) == 0
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with served("--models", root / "models") as (_, address, _):
        yield address


def in_torch(root: Path, precision: str) -> ClipClassifier:
    model = checkpoint.load(root / "run" / "best.safetensors").model()
    if precision == "fp32":
        return model
    assert model.backbone is not None
    clips = (decode_clip(path, model.config.sampling).frames for path in read_clips(root / "clips").paths)
    return int8_backbone.rounded(model, int8_backbone.calibrate(model.backbone, clips))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_answers_are_those_of_torch(root: Path, url: str, precision: str) -> None:
    model = in_torch(root, precision)
    for path in read_clips(root / "clips").paths[::4]:
        with torch.inference_mode():
            out = model(torch.from_numpy(decode_clip(path, model.config.sampling).frames)[None])
        asked = {"model": precision, "top_k": 3}
        answer = httpx.post(f"{url}/classify", params=asked, content=path.read_bytes(), timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        given = {entry["label"]: entry["probability"] for entry in answer.json()["top_k"]}
        assert [given[label] for label in LABELS] == pytest.approx(out.logits[0].softmax(-1), abs=PROBABILITY)
        steps = np.array([step["probabilities"] for step in answer.json()["over_time"]])
        assert steps == pytest.approx(out.logits_over_time[0].softmax(-1).numpy(), abs=PROBABILITY)


def test_a_live_stream_is_answered_step_by_step(root: Path, url: str, tmp_path: Path) -> None:
    """In int8, as all the frames at once by torch."""
    model, path = in_torch(root, "int8"), tmp_path / "clip.ts"
    write(path, moving(), "mpeg2video")
    with connect(f"{url.replace('http', 'ws')}/stream?model=int8&format=encoded&top_k=3", open_timeout=60) as socket:
        socket.recv(PATIENCE_S)
        socket.send(path.read_bytes())
        socket.send('{"type": "end"}')
        heard = []
        while not heard or heard[-1]["type"] == "step":
            heard.append(json.loads(socket.recv(PATIENCE_S)))
    sampling = model.config.sampling.every(20)
    with torch.inference_mode():
        out = model(torch.from_numpy(decode_clip(path, sampling).frames)[None])
    assert len(heard) == 21
    given = {entry["label"]: entry["probability"] for entry in heard[-1]["top_k"]}
    assert [given[label] for label in LABELS] == pytest.approx(out.logits[0].softmax(-1), abs=PROBABILITY)


def test_files_say_what_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "models" / "int8" / "1" / "model.onnx"
    manifest = inspect.manifest_of(inspect.read(file), file, Manifest)
    made = manifest.architecture
    assert (made.backbone, made.backbone_features, made.backbone_weights) == ("efficientnet-lite0", "map", 3_350_000)
    assert manifest.precision_report is not None
    assert manifest.precision_report.num_clips == 12
    assert 0 < manifest.precision_report.max_logit_difference < 5  # type: ignore[operator]
    assert file.stat().st_size < 5_000_000
    capsys.readouterr()
    assert inspect.main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "efficientnet-lite0" in shown
    assert "QuantizeLinear" in shown
    fp32 = root / "models" / "fp32" / "1" / "model.onnx"
    saved = str(root / "run" / "best.safetensors")
    quick = ["--batch", "1", "--rounds", "1", "--threads", "1", "--checkpoint", saved]
    assert benchmark.main([str(fp32), "--against", f"chain,{file}", *quick]) == 0
    assert evaluate.main([str(file), "--data", str(root / "clips")]) == 0


def test_int8_asks_for_clips(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, out = str(root / "run" / "best.safetensors"), tmp_path / "model.onnx"
    assert to_onnx.main([saved, "-o", str(out), "--precision", "int8"]) == 2
    assert "expected --calibrate DATA or --evaluate DATA, got neither" in capsys.readouterr().err
    assert to_onnx.main([saved, "-o", str(out), "--precision", "fp16"]) == 2
    assert "expected fp32 or int8 of a model with a backbone" in capsys.readouterr().err
    assert not out.exists()

"""The whole line: clips -> train -> export -> a real server process -> answers, against the model run in torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from exporters import to_onnx
from service.video import decode_clip
from tests.made import write_folder
from tests.serving import served
from tests.tolerances import PROBABILITY
from ttmodels import checkpoint, train
from ttmodels.classifier import ClipClassifier

LABELS = ("left", "right", "still")
PATIENCE_S = 60


@dataclass(frozen=True)
class Line:
    """A trained model, and a server process that serves its export."""

    model: ClipClassifier
    url: str
    made: list[Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("line") / "clips", LABELS, 12)


@pytest.fixture(scope="module")
def line(made: Path) -> Iterator[Line]:
    run = made.parent / "tiny"
    size = ["--width", "32", "--height", "24", "--hidden", "16", "--num-frames", "8"]
    fit = ["--epochs", "4", "--batch-size", "8", "--learning-rate", "0.01", "--valid-fraction", "0.25"]
    assert train.main(["--data", str(made), "--out", str(run), *size, *fit]) == 0
    models = made.parent / "models"
    assert to_onnx.main([str(run / "best.safetensors"), "-o", str(models / "tiny" / "1" / "model.onnx")]) == 0
    model = checkpoint.load(run / "best.safetensors").model()
    with served("--models", models) as (process, url, _):
        yield Line(model, url, sorted(made.rglob("*.mp4"))[::5])
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def check(line: Line, path: Path) -> None:
    """A served answer is what the model says of the same file in torch."""
    response = httpx.post(
        f"{line.url}/classify",
        params={"top_k": 3, "model": "tiny"},
        files={"file": (path.name, path.read_bytes())},
        timeout=PATIENCE_S,
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    clip = decode_clip(path, line.model.config.sampling)
    with torch.inference_mode():
        out = line.model(torch.from_numpy(clip.frames)[None])
    want = out.logits[0].softmax(-1).numpy()
    served = {entry["label"]: entry["probability"] for entry in answer["top_k"]}
    assert [served[label] for label in LABELS] == pytest.approx(want, abs=PROBABILITY)
    assert answer["probability"] == pytest.approx(want.max(), abs=PROBABILITY)
    assert answer["label"] == LABELS[int(want.argmax())] or np.partition(want, -2)[-2] > want.max() - PROBABILITY
    over_time = np.array([step["probabilities"] for step in answer["over_time"]])
    assert over_time == pytest.approx(out.logits_over_time[0].softmax(-1).numpy(), abs=PROBABILITY)
    assert [step["time_s"] for step in answer["over_time"]] == pytest.approx(clip.info.times_s)
    assert answer["clip"]["codec"] == clip.info.codec
    assert answer["clip"]["upload_bytes"] == path.stat().st_size


def test_real_clips_are_served_as_torch_sees_them(line: Line, real_clip: Path) -> None:
    check(line, real_clip)


def test_made_clips_are_served_as_torch_sees_them(line: Line) -> None:
    for path in line.made:
        check(line, path)


def test_the_command_line_agrees_with_the_server(line: Line, made: Path) -> None:
    paths = [str(path) for path in line.made]
    arguments = [sys.executable, "-m", "service", "classify", "--json", "--models", str(made.parent / "models")]
    done = subprocess.run([*arguments, "--model", "tiny", *paths], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(text) for text in done.stdout.splitlines()]
    assert [entry["file"] for entry in printed] == paths
    for path, entry in zip(line.made, printed, strict=True):
        body = path.read_bytes()
        response = httpx.post(f"{line.url}/classify", params={"model": "tiny"}, content=body, timeout=PATIENCE_S)
        for one, other in zip(entry["classification"]["over_time"], response.json()["over_time"], strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=PROBABILITY)

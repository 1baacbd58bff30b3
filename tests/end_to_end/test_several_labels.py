"""The line for clips of several labels: a tree as Hollywood2's publisher lays it out -> list -> train -> evaluate ->
export -> a real server process -> answers, against the model run in torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from exporters import to_onnx
from service.manifest import Manifest
from service.video import decode_clip
from tests.serving import served
from tests.tolerances import PROBABILITY
from ttmodels import checkpoint, evaluate, train
from ttmodels.data import lists
from ttmodels.data.encode import write_video
from ttmodels.data.published import HOLLYWOOD2_ACTIONS

COLOURS = {"Kiss": (230, 40, 40), "SitDown": (40, 230, 40), "StandUp": (40, 40, 230)}
LABELS = tuple(COLOURS)
COMBINATIONS = (("Kiss",), ("SitDown",), ("StandUp",), ("Kiss", "SitDown"), ("Kiss", "StandUp"))
NUM_CLIPS = {"train": 50, "test": 20}
PATIENCE_S = 60


def acted(rng: np.random.Generator, actions: tuple[str, ...]) -> np.ndarray:
    """uint8 [12, 48, 64, 3]: a square for each action, in its colour, that wanders over noise of some brightness."""
    frames = rng.integers(0, rng.integers(40, 160), (12, 48, 64, 3), np.uint8)
    for action in actions:
        (top, left), (down, right) = rng.integers((4, 4), (20, 36)), rng.integers(-1, 2, 2)
        for t, frame in enumerate(frames):
            y, x = max(top + t * down, 0), max(left + t * right, 0)
            frame[y : y + 16, x : x + 16] = COLOURS[action]
    return frames


def write_hollywood2(root: Path) -> None:
    """Every clip is written with the sign of every action, as the publisher does."""
    (root / "AVIClips").mkdir(parents=True)
    (root / "ClipSets").mkdir()
    for split, num_clips in NUM_CLIPS.items():
        of_clip = {f"actionclip{split}{i:05d}": COMBINATIONS[i % 5] for i in range(num_clips)}
        for i, (name, actions) in enumerate(of_clip.items()):
            frames = acted(np.random.default_rng((len(split), i)), actions)
            write_video(root / "AVIClips" / f"{name}.avi", frames, codec="mpeg4", bit_rate=1_000_000)
        for action in HOLLYWOOD2_ACTIONS:
            lines = [f"{name}  {1 if action in actions else -1}\n" for name, actions in of_clip.items()]
            (root / "ClipSets" / f"{action}_{split}.txt").write_text("".join(lines))


@pytest.mark.slow
def test_a_tree_of_hollywood2_becomes_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, listed, run = tmp_path / "Hollywood2", tmp_path / "list.csv", tmp_path / "run"
    write_hollywood2(root)
    assert lists.main(["hollywood2", str(root), "-o", str(listed)]) == 0

    size = ["--width", "32", "--height", "24", "--hidden", "16", "--num-frames", "8"]
    fit = ["--epochs", "30", "--batch-size", "8", "--learning-rate", "0.02", "--valid-fraction", "0.2"]
    assert train.main(["--data", str(listed), "--out", str(run), "--task", "multi_label", *size, *fit]) == 0
    report = json.loads((run / "data.json").read_text())
    assert report["counts"]["test"] == {"Kiss": 12, "SitDown": 8, "StandUp": 8}
    assert report["majority"]["test"] == pytest.approx((12 + 8 + 8) / 20 / 3)
    test = json.loads((run / "test.json").read_text())
    assert test["mean_ap"] > 0.2 + max(report["majority"]["test"], report["metadata_only"]["test"])

    best, figures = run / "best.safetensors", tmp_path / "figures.json"
    assert evaluate.main([str(best), "--data", str(listed), "--write", str(figures)]) == 0
    assert json.loads(figures.read_text()) == test
    model_file = tmp_path / "models" / "actions" / "1" / "model.onnx"
    capsys.readouterr()
    more = ["--precision", "int8", "--evaluate", str(listed), "--metrics", str(figures)]
    assert to_onnx.main([str(best), "-o", str(model_file), *more]) == 0
    assert f"mean AP     {test['mean_ap']:.4f} on 20 clips of test" in capsys.readouterr().out

    model, video = checkpoint.load(best).model(), root / "AVIClips" / "actioncliptest00003.avi"
    with served("--models", tmp_path / "models") as (_, url, _):
        manifest = Manifest.model_validate(httpx.get(f"{url}/model").json()["manifest"])
        answer, timeline = (
            httpx.post(f"{url}/classify", params=params, content=video.read_bytes(), timeout=PATIENCE_S).json()
            for params in ({}, {"window_s": 0.2})
        )
    assert (manifest.task, manifest.labels) == ("multi_label", LABELS)
    assert manifest.metrics[0].mean_ap == test["mean_ap"]
    compared = manifest.precision_report
    assert compared is not None
    assert compared.mean_ap_fp32 == pytest.approx(test["mean_ap"], abs=1e-3)
    assert evaluate.main([str(model_file), "--data", str(listed), "--write", str(figures)]) == 0
    assert json.loads(figures.read_text())["mean_ap"] == pytest.approx(compared.mean_ap, abs=1e-3)

    with torch.inference_mode():
        frames = torch.from_numpy(decode_clip(video, model.config.sampling).frames)
        want = (model(frames[None]).logits[0] / manifest.temperature).sigmoid()
    found = {scored["label"]: scored["probability"] for scored in answer["top_k"]}
    assert [found[label] for label in LABELS] == pytest.approx(
        want.tolist(), abs=compared.max_probability_difference + PROBABILITY
    )
    assert answer["label"] == answer["top_k"][0]["label"]
    assert answer["model"]["task"] == "multi_label"
    held = {
        label
        for window in timeline["windows"]
        for label, chance in zip(LABELS, window["probabilities"], strict=True)
        if chance >= 0.5
    }
    assert {span["label"] for span in timeline["spans"]} == held == {"Kiss", "SitDown"}
    command = [sys.executable, "-m", "service", "classify", "--models", str(tmp_path / "models"), "--model", "actions"]
    done = subprocess.run([*command, str(video)], capture_output=True, text=True, timeout=PATIENCE_S)
    said = done.stdout.removeprefix(f"{video}: ").split(" (")[0]
    assert {label for label in LABELS if label in said} == {"Kiss", "SitDown"}

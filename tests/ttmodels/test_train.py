import json
from pathlib import Path

import pytest
import torch

from tests.made import write_folder
from ttmodels import checkpoint
from ttmodels import evaluate as evaluation
from ttmodels.classifier import ClipLogits
from ttmodels.train import clip_loss, main, schedule

SIZE = ["--num-frames", "6", "--width", "16", "--height", "12", "--hidden", "16", "--rank", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right"), 24)


def run(folder: Path, out: Path, *more: str) -> int:
    cache = out.parent / "cache"
    return main(["--data", str(folder), "--out", str(out), "--cache", str(cache), "--batch-size", "8", *SIZE, *more])


def test_it_learns_and_is_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "25", "--learning-rate", "0.02", "--valid-fraction", "0.25") == 0
    printed = capsys.readouterr().out
    assert "36 to train on, 12 to choose by" in printed
    assert "times fewer than dense" in printed
    best = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert best.progress.best_accuracy >= 0.9
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    losses = [entry["train_loss"] for entry in last.progress.history]
    assert losses[-1] < 0.7 * losses[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["epochs"] == 25

    write = tmp_path / "figures.json"
    arguments = [str(tmp_path / "run" / "best.safetensors"), "--data", str(folder), "--write", str(write)]
    assert evaluation.main(arguments) == 0
    figures = json.loads(write.read_text())
    assert figures["num_clips"] == 48
    assert sum(map(sum, figures["confusion"])) == 48
    assert figures["accuracy"] >= 0.9


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--epochs", "4", "--dropout", "0.3"]
    assert run(folder, tmp_path / "whole", *more) == 0
    real_save = checkpoint.save

    def stop_after_two(path: Path, *arguments: object) -> None:
        real_save(path, *arguments)  # type: ignore[arg-type]
        if path.name == "last.safetensors" and checkpoint.load(path).progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "parts", *more)
    monkeypatch.undo()
    assert run(folder, tmp_path / "parts", *more, "--resume") == 0
    whole, parts = (checkpoint.load(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)


def test_another_configuration_is_not_resumed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "1") == 0
    assert run(folder, tmp_path / "run", "--epochs", "2", "--resume") == 2
    assert "was started with another configuration" in capsys.readouterr().err


def test_a_wrong_folder_or_mode_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: expected a folder with one sub-folder per class")


def test_schedule() -> None:
    assert schedule(0.0, 0.1) == 0
    assert schedule(0.1, 0.1) == 1
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == pytest.approx(0)


def test_clip_loss_mixes_the_later_steps() -> None:
    out = ClipLogits(torch.randn(2, 3), torch.randn(2, 4, 3))
    targets = torch.tensor([0, 2])
    clip = torch.nn.functional.cross_entropy(out.logits, targets)
    steps = torch.stack([torch.nn.functional.cross_entropy(out.logits_over_time[:, t], targets) for t in (2, 3)]).mean()
    assert torch.allclose(clip_loss(out, targets, 0.0), clip)
    assert torch.allclose(clip_loss(out, targets, 0.25), 0.75 * clip + 0.25 * steps)

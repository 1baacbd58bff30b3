"""Training from a backbone's features: they are computed once, and the checkpoint holds what was trained."""

from pathlib import Path

import pytest
import torch

from tests.made import write_folder
from tests.ttmodels.test_train import interrupt_after
from ttmodels import checkpoint, evaluate
from ttmodels.backbone import SCALING, Backbone
from ttmodels.config import TrainConfig
from ttmodels.options import new_run
from ttmodels.train import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right"), 6)


def run(folder: Path, out: Path, *more: str) -> int:
    """Mirrored clips change their labels."""
    arguments = ["--data", str(folder), "--out", str(out), "--cache", str(out.parent / "cache"), "--batch-size", "4"]
    size = ["--backbone", "efficientnet-lite0", "--num-frames", "4", "--width", "64", "--height", "32"]
    return main([*arguments, *size, "--hidden", "8", "--mirror-horizontal", "left=right", "--views", "3", *more])


def test_features_are_computed_once_and_a_resumed_run_is_the_uninterrupted_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--backbone-features", "map", "--dropout", "0.2"]
    assert run(folder, tmp_path / "whole", "--epochs", "4", *options) == 0
    printed = capsys.readouterr().out
    assert "its map features, 2,560 a frame, are kept in the cache" in printed
    assert "(1, 2, 32, 40) -> " in printed
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "forward", None)
        interrupt_after(2, patch)
        assert run(folder, tmp_path / "parts", "--epochs", "4", *options) == 130
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "forward", None)
        resume = ["--data", str(folder), "--out", str(tmp_path / "parts"), "--cache", str(tmp_path / "cache")]
        assert main([*resume, "--resume"]) == 0
    whole, parts = (checkpoint.load(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())
    assert whole.tensors["model.feature_std"].min() > 0
    assert (tmp_path / "whole" / "last.safetensors").stat().st_size < 100_000

    saved = tmp_path / "whole" / "best.safetensors"
    assert evaluate.main([str(saved), "--data", str(folder), "--cache", str(tmp_path / "cache")]) == 0
    assert "12 clips" in capsys.readouterr().out


def test_its_defaults() -> None:
    model, config = new_run(("a", "b"), {"backbone": "efficientnet-lite0"})
    assert (model.sampling.height, model.sampling.width, model.scaling) == (160, 160, SCALING)
    assert model.input_modes == (8, 10, 16)
    assert model.input_size == 1280
    assert config.views == TrainConfig().views
    model, _ = new_run(("a", "b"), {"backbone": "efficientnet-lite0", "backbone_features": "map", "height": 96})
    assert model.input_modes == (3, 5, 32, 40)

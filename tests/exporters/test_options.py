"""What `exporters.to_onnx` refuses before any work, and what its help says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from exporters import to_onnx
from tests.exporters.test_mlp import CONFIGS
from tests.made import tiny_config
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.mlp import MLPClassifier


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint a.safetensors and links to it."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(Path("a.safetensors"), ClipClassifier(tiny_config()), TrainConfig(), Progress())
    Path("soft.onnx").symlink_to("a.safetensors")
    os.link("a.safetensors", "hard.onnx")
    Path("test.json").write_text("{}")
    Path("clips/left").mkdir(parents=True)
    Path("clips/left/0.mp4").write_bytes(b"a clip")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "more"),
    [
        ("a.safetensors", []),
        ("./clips/../a.safetensors", []),
        ("soft.onnx", []),
        ("hard.onnx", []),
        ("test.json", ["--metrics", "test.json"]),
        ("clips/left/0.mp4", ["--evaluate", "clips", "--precision", "int8"]),
    ],
)
def test_an_output_that_is_an_input_is_refused(
    out: str, more: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert to_onnx.main(["a.safetensors", "-o", out, *more]) == 2
    assert f"-o: expected another file than what is read, got {Path(out)}, " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert (here / "soft.onnx").is_symlink()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", ""], "--name: expected a name, got an empty one"),
        (["--version", ""], "--version: expected a version, got an empty one"),
        (["--cache", "there"], "--cache: expected --evaluate DATA or --calibrate DATA beside it, got neither"),
        (
            ["--precision", "int8", "--max-accuracy-loss", "0.1"],
            "--max-accuracy-loss: expected --evaluate DATA beside it, got none",
        ),
        (
            ["--evaluate", "clips", "--max-accuracy-loss", "0.1"],
            "--max-accuracy-loss: expected --precision fp16 or int8, got fp32",
        ),
        (["--min-agreement", "0.5"], "--min-agreement: expected --precision fp16 or int8, got fp32"),
        (["--max-probability-difference", "0"], "--max-probability-difference: expected --precision fp16 or int8, got"),
        (["--precision", "int8", "--min-agreement", "95"], "min_agreement: expected a number from 0 to 1, got 95.0"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    more: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_onnx.main(["a.safetensors", "-o", "m.onnx", *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (here / "m.onnx").exists()


@pytest.mark.parametrize("option", ["--tolerance", "--temperature"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "some"])
def test_numbers_are_checked_before_anything_is_read(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        to_onnx.main(["none.safetensors", option, value])
    assert f"argument {option}: expected a finite number above 0, got {value}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [["--precision", "int8"], ["--target", "cuda"], ["--streaming"], ["--evaluate", "clips"], ["--no-tune"]]
)
def test_what_an_mlp_has_not_is_refused(more: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    checkpoint.save(Path("mlp.safetensors"), MLPClassifier(CONFIGS["grey"]), TrainConfig(), Progress())
    assert to_onnx.main(["mlp.safetensors", "-o", "m.onnx", *more]) == 2
    assert f"error: {more[0]}: is for models of clips, and mlp.safetensors is an MLP" in capsys.readouterr().err
    assert not (here / "m.onnx").exists()


def test_the_help_says_what_decides_between_plans_that_are_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        to_onnx.main(["--help"])
    assert "of those within 3% of the fastest" in " ".join(capsys.readouterr().out.split())

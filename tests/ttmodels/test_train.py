import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from service.video import Sampling
from tests.made import write_folder
from ttmodels import checkpoint
from ttmodels import evaluate as evaluation
from ttmodels import train as training
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.predictions import Predictions
from ttmodels.schedule import schedule
from ttmodels.train import main

SIZE = ["--num-frames", "6", "--width", "16", "--height", "12", "--hidden", "16", "--rank", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right"), 24)


def run(folder: Path, out: Path, *more: str) -> int:
    cache = out.parent / "cache"
    return main(["--data", str(folder), "--out", str(out), "--cache", str(cache), "--batch-size", "8", *SIZE, *more])


def bare(folder: Path, out: Path, *more: str) -> int:
    """Without a word on the model."""
    return main(["--data", str(folder), "--out", str(out), "--cache", str(out.parent / "cache"), *more])


def test_it_learns_and_is_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "25", "--learning-rate", "0.02", "--valid-fraction", "0.25") == 0
    printed = capsys.readouterr()
    assert ["all", "36", "12"] in [line.split() for line in printed.out.splitlines()]
    assert "48 in the cache, 0 anew each epoch" in printed.out
    assert "(majority class 0.5000, metadata only " in printed.out
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["counts"] == {"train": {"left": 18, "right": 18}, "valid": {"left": 6, "right": 6}}
    assert (report["leaks"], report["unreadable"], report["majority"]) == ([], {}, {"valid": 0.5})
    assert "times fewer than dense" in printed.out
    assert not printed.err  # bars are for terminals
    best = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert best.progress.best_score >= 0.9
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
    assert figures["checkpoint_sha256"] == checkpoint.load(tmp_path / "run" / "best.safetensors").sha256


def test_a_fold_of_a_list_is_the_test_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest of the groups train and validate; a resumed run keeps the fold; the fold alone can be evaluated."""
    rows = ["path,label,group,fold"]
    for label in ("left", "right"):
        for i in range(24):
            path = tmp_path / "clips" / f"{label}{i}.mp4"
            path.parent.mkdir(exist_ok=True)
            shutil.copy(folder / label / f"{i}.mp4", path)
            rows.append(f"clips/{path.name},{label},scene {i // 2},{i // 2 % 3}")
    source = tmp_path / "list.csv"
    rows.append("clips/gone.mp4,left,scene 0,0")
    source.write_text("\n".join(rows) + "\n")
    shutil.copy(tmp_path / "clips" / "left0.mp4", tmp_path / "clips" / "left3.mp4")  # folds 0 and 1

    out = tmp_path / "run"
    assert run(source, out, "--epochs", "1", "--fold", "1", "--valid-fraction", "0.25", "--cache-bytes", "100000") == 0
    printed = capsys.readouterr()
    assert "gone.mp4: expected a file, found none" in printed.err
    assert "test accuracy" in printed.out
    assert "26 in the cache, 22 anew each epoch" in printed.out
    report = json.loads((out / "data.json").read_text())
    assert [sum(part.values()) for part in report["counts"].values()] == [24, 8, 16]
    assert report["groups"] == {"train": 6, "valid": 2, "test": 4}
    (leak,) = report["leaks"]
    assert [Path(path).name for path in leak["test"]] == ["left3.mp4"]
    figures = json.loads((out / "test.json").read_text())
    best = checkpoint.load(out / "best.safetensors")
    assert (figures["num_clips"], figures["checkpoint_sha256"]) == (16, best.sha256)
    assert (best.train_config.fold, best.progress.num_clips) == (1, {"train": 24, "valid": 8, "test": 16})

    more = ["--fold", "1", "--write", str(tmp_path / "figures.json")]
    assert evaluation.main([str(out / "best.safetensors"), "--data", str(source), *more]) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert bare(source, out, "--resume", "--epochs", "2") == 0
    assert checkpoint.load(out / "last.safetensors").progress.num_clips["test"] == 16
    capsys.readouterr()
    assert bare(source, out, "--resume", "--fold", "2") == 2
    assert "the run to resume has --fold 1; got --fold 2." in capsys.readouterr().err
    source.write_text("\n".join(rows[:40]) + "\n")
    assert bare(source, out, "--resume", "--epochs", "3") == 0
    assert "'test': 16} clips, and now there are" in capsys.readouterr().err


def test_a_lists_own_split_is_trained_on(folder: Path, tmp_path: Path) -> None:
    splits = ["train", "train", "valid", "test"]
    rows = [f"{folder}/{label}/{i}.mp4,{label},{splits[i % 4]}" for label in ("left", "right") for i in range(24)]
    source = tmp_path / "list.csv"
    source.write_text("\n".join(["path,label,split", *rows]) + "\n")
    out = tmp_path / "run"
    assert run(source, out, "--epochs", "1") == 0
    assert checkpoint.load(out / "best.safetensors").progress.num_clips == {"train": 24, "valid": 12, "test": 12}
    write = tmp_path / "figures.json"
    arguments = [str(out / "best.safetensors"), "--data", str(source), "--write", str(write)]
    assert evaluation.main([*arguments, "--split", "valid"]) == 0
    assert json.loads(write.read_text())["num_clips"] == 12
    assert evaluation.main(arguments) == 0
    assert json.loads(write.read_text()) == json.loads((out / "test.json").read_text())


def test_clips_of_several_labels_are_learned_each_label_by_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What moves left has, beside it, the label of every clip, or none at all."""
    names = {"left": ("left|seen", ""), "right": ("right|seen", "right|seen")}
    rows = [
        f"{folder}/{motion}/{i}.mp4,{said[i % 4 == 3]},{'valid' if i % 4 == 0 else 'train'}"
        for motion, said in names.items()
        for i in range(24)
    ]
    source = tmp_path / "list.csv"
    source.write_text("\n".join(["path,label,split", *rows]) + "\n")
    assert run(source, tmp_path / "run") == 2
    assert "expected one label, got left|seen: several are for --task multi_label" in capsys.readouterr().err
    out, task = tmp_path / "run", ["--task", "multi_label"]
    assert run(folder, out, *task) == 2
    assert "--task multi_label: expected a CSV list" in capsys.readouterr().err
    more = [*task, "--epochs", "15", "--learning-rate", "0.02", "--over-time-weight", "0.3"]
    assert run(source, out, *more, "--mirror-horizontal", "left=right") == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "data.json").read_text())
    assert report["counts"]["train"] == {"left": 12, "right": 18, "seen": 30}
    assert report["num_clips"] == {"train": 36, "valid": 12}
    assert "baselines, valid label frequencies 0.6667, metadata only" in printed
    assert "valid mean AP" in printed
    assert [line.split()[:2] for line in printed.splitlines()[-5:-2]] == [["left", "6"], ["right", "6"], ["seen", "12"]]
    best = checkpoint.load(out / "best.safetensors")
    assert best.progress.best_score > 0.9
    assert best.model_config.task == "multi_label"
    last = checkpoint.load(out / "last.safetensors")
    assert last.progress.history[-1]["train_loss"] < 0.95 * last.progress.history[0]["train_loss"]

    write = tmp_path / "figures.json"
    arguments = [str(out / "best.safetensors"), "--data", str(source), "--split", "valid", "--write", str(write)]
    assert evaluation.main(arguments) == 0
    assert f"valid: mean AP {best.progress.best_score:.4f}" in capsys.readouterr().out
    figures = json.loads(write.read_text())
    assert figures["mean_ap"] == pytest.approx(best.progress.best_score)
    assert bare(source, out, "--resume", "--epochs", "16") == 0
    assert bare(source, out, "--resume", "--task", "single_label") == 2
    assert "the run to resume has --task multi_label; got --task single_label" in capsys.readouterr().err


def test_every_form_of_the_recurrence_is_an_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = ["--num-layers", "2", "--bidirectional", "--activation", "elu", "--recurrent-activation", "hard_sigmoid",
            "--no-reset-after", "--recurrent-ranks", "2", "3", "2"]  # fmt: skip
    assert run(folder, tmp_path / "run", "--epochs", "1", *form) == 0
    assert "layers           2, both directions" in capsys.readouterr().out
    config = checkpoint.load(tmp_path / "run" / "last.safetensors").model_config
    assert (config.num_layers, config.bidirectional, config.activation) == (2, True, "elu")
    assert (config.recurrent_activation, config.reset_after) == ("hard_sigmoid", False)
    assert config.recurrent_ranks == (2, 3, 2)
    assert bare(folder, tmp_path / "run", "--resume", "--epochs", "2", *form) == 0
    more = ["--no-bidirectional", "--reset-after", "--recurrent-ranks", "2"]
    capsys.readouterr()
    assert bare(folder, tmp_path / "run", "--resume", "--epochs", "3", *more) == 2
    printed = capsys.readouterr().err
    assert "the run to resume has --bidirectional, no --reset-after, --recurrent-ranks 2 3 2" in printed
    assert "got no --bidirectional, --reset-after, --recurrent-ranks 2." in printed


@pytest.mark.parametrize(
    ("options", "shown", "sampling"),
    [
        (["--policy", "rate", "--rate", "7.5"], "7.5 a second", {"policy": "rate", "rate": 7.5}),
        (
            ["--policy", "windows", "--window-length", "2", "--window-stride", "5", "--resize-filter", "bicubic"],
            "windows of 2, one every 5 frames",
            {"policy": "windows", "window_length": 2, "window_stride": 5, "resize_filter": "bicubic"},
        ),
    ],
)
def test_how_frames_are_taken_is_an_option(
    options: list[str],
    shown: str,
    sampling: dict[str, object],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "1", *options) == 0
    assert f"6 frames of 16x12, {shown}" in capsys.readouterr().out
    expected = Sampling(num_frames=6, width=16, height=12, **sampling)  # type: ignore[arg-type]
    assert checkpoint.load(tmp_path / "run" / "best.safetensors").model_config.sampling == expected
    assert bare(folder, tmp_path / "run", "--resume", "--epochs", "2") == 0
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert (last.model_config.sampling, last.progress.epoch) == (expected, 2)
    assert bare(folder, tmp_path / "run", "--resume", "--epochs", "3", *options) == 0
    capsys.readouterr()
    assert bare(folder, tmp_path / "run", "--resume", "--policy", "first") == 2
    assert f"the run to resume has --policy {expected.policy}; got --policy first." in capsys.readouterr().err


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once so many epochs are in `last`; before the first batch for 0."""
    real_save = checkpoint.save

    def save(path: Path, *arguments: object) -> None:
        real_save(path, *arguments)  # type: ignore[arg-type]
        if path.name == "last.safetensors" and checkpoint.load(path).progress.epoch == epochs:
            raise KeyboardInterrupt

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if epochs:
        monkeypatch.setattr(checkpoint, "save", save)
    else:
        monkeypatch.setattr(training.ClipLoss, "__call__", interrupt)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    precision: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And takes its configuration from the run, not from the command. Nothing is lost of what is counted over epochs,
    such as plateaus and the scale of the loss."""
    how = ["--schedule", "plateau", "--plateau-epochs", "1", "--precision", precision, "--class-weights", "balanced"]
    changes = ["--crop", "0.5", "--time-jitter", "0.3", "--gain", "0.2", "--saturation", "0.2", "--erase", "0.5"]
    more = ["--epochs", "4", "--dropout", "0.3", "--label-smoothing", "0.1", "--learning-rate", "0.1", *how, *changes]
    assert run(folder, tmp_path / "whole", *more) == 0
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(folder, tmp_path / "parts", *more) == 130
    assert "interrupted; --resume goes on after the last whole epoch" in capsys.readouterr().err
    assert bare(folder, tmp_path / "parts", "--resume") == 0
    whole, parts = (checkpoint.load(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    assert timeless(whole) == timeless(parts)
    assert timeless(checkpoint.load(tmp_path / "parts" / "best.safetensors")) == timeless(
        checkpoint.load(tmp_path / "whole" / "best.safetensors")
    )
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    every, again = ([line.rpartition(",")[0] for line in log] for log in logs)  # but the seconds
    assert every == again
    assert len(every) == 1 + 4
    assert bool(whole.progress.scaler) == (precision == "fp16")
    losses = [entry["valid_loss"] for entry in whole.progress.history]
    assert any(after >= before for before, after in itertools.pairwise(losses))  # a plateau was passed


def timeless(saved: Checkpoint) -> Progress:
    """What a run has come to, but for the time it took."""
    history = [{**entry, "seconds": 0.0} for entry in saved.progress.history]
    return dataclasses.replace(saved.progress, history=history)


def test_an_interruption_before_the_first_epoch_says_that_nothing_can_be_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(0, monkeypatch)
    assert run(folder, tmp_path / "run", "--epochs", "1") == 130
    assert "no epoch was done, the same command starts again" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(folder, tmp_path / "run", "--epochs", "1") == 0
    interrupt_after(0, monkeypatch)
    assert run(folder, tmp_path / "run", "--epochs", "1", "--overwrite") == 130
    assert not list((tmp_path / "run").glob("*.safetensors"))  # the old run's would pass for the new one's


def test_more_epochs_may_be_asked_of_a_finished_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest then follows the schedule of the new number, and the run's configuration is the new one."""
    assert run(folder, tmp_path / "run", "--epochs", "1") == 0
    capsys.readouterr()
    assert bare(folder, tmp_path / "run", "--resume") == 0
    assert "nothing left to do: all 1 epochs are done" in capsys.readouterr().out
    report = tmp_path / "run" / "report" / "index.html"
    report.unlink()  # a run that broke off between its last epoch and its end
    assert bare(folder, tmp_path / "run", "--resume") == 0
    assert f"report {report}" in capsys.readouterr().out
    assert report.exists()
    seen: list[float] = []
    monkeypatch.setattr(training, "schedule", lambda config, done, _: seen.append(done) or schedule(config, done, ()))
    assert bare(folder, tmp_path / "run", "--resume", "--epochs", "2") == 0
    assert (min(seen), max(seen)) == (0.5, pytest.approx(1 - 0.5 / len(seen)))
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert (last.train_config.epochs, last.progress.epoch, len(last.progress.history)) == (2, 2, 2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["epochs"] == 2


def test_options_that_differ_from_the_run_to_resume_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "2", "--rank", "1000") == 0
    capsys.readouterr()
    monkeypatch.setattr(training, "DecodedClips", None)  # all of this comes before decoding
    other = ["--hidden", "8", "--input-modes", "12", "48", "--crop", "0.5", "--epochs", "1"]
    assert bare(folder, tmp_path / "run", "--resume", *other) == 2
    assert capsys.readouterr().err == (
        "error: the run to resume has --input-modes 3 4 4 12, --epochs 2, --crop 1.0, --hidden 16; "
        "got --input-modes 12 48, --epochs 1, --crop 0.5, --hidden 8. "
        "Only --epochs may change, to more of them, and --patience\n"
    )
    assert run(folder, tmp_path / "run", "--epochs", "2", "--rank", "1000", "--resume") == 0
    assert bare(folder, tmp_path / "new", "--resume") == 2
    assert "found nothing at" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unasked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(folder, out, "--epochs", "1") == 0
    before = (out / "best.safetensors").read_bytes()
    assert run(folder, out, "--epochs", "1", "--seed", "1") == 2
    assert "holds a run already: go on with --resume, or start anew with --overwrite" in capsys.readouterr().err
    assert run(folder, out, "--epochs", "1", "--overwrite", "--mirror-vertical", "left=up") == 2
    assert (out / "best.safetensors").read_bytes() == before
    assert run(folder, out, "--epochs", "1", "--seed", "1", "--overwrite") == 0
    assert (out / "best.safetensors").read_bytes() != before


def test_of_equally_accurate_epochs_the_one_with_the_lower_loss_is_the_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse, best, between, fewer_right = (1, 1, -2, -2), (1, 1, -1, -1), (1, 1, -1.5, -1.5), (8, -0.01, -0.01, -0.01)
    margins = iter([worse, best, between, fewer_right, best])  # of four clips; the last are those of the best again
    losses = []

    def predict(*_: object) -> Predictions:
        logits = np.float32([[margin, 0] for margin in next(margins)])
        said = Predictions(logits, np.zeros(4, np.int64), ("left", "right"))
        losses.append(said.loss())
        return said

    monkeypatch.setattr(training, "predict", predict)
    assert run(folder, tmp_path / "run", "--epochs", "4") == 0
    progress = checkpoint.load(tmp_path / "run" / "last.safetensors").progress
    assert (progress.best_epoch, progress.best_score, progress.best_loss) == (2, 0.5, losses[1])
    assert losses[3] < losses[1] == min(losses[:3])
    assert checkpoint.load(tmp_path / "run" / "best.safetensors").progress.epoch == 2


def test_without_clips_to_choose_by_the_last_epoch_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    all_clips = ["--valid-fraction", "0", "--epochs", "3"]
    assert run(folder, tmp_path / "whole", *all_clips) == 0
    printed = capsys.readouterr().out
    assert "best epoch 3; " in printed
    assert "temperature 1: none was fitted on validation: expected clips that are held back, got none" in printed
    assert (tmp_path / "whole" / "log.csv").read_text().splitlines()[0] == "epoch,train_loss,learning_rate,seconds"
    page = (tmp_path / "whole" / "report" / "index.html").read_text()
    assert "No clips are held back to choose an epoch by: it is the last, epoch 3." in page
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(folder, tmp_path / "run", *all_clips) == 130
    assert bare(folder, tmp_path / "run", "--resume") == 0
    whole, best, last = (
        checkpoint.load(tmp_path / name)
        for name in ("whole/best.safetensors", "run/best.safetensors", "run/last.safetensors")
    )
    assert best.progress.num_clips == {"train": 48}
    assert best.progress.epoch == last.progress.best_epoch == 3
    for name, value in last.model().state_dict().items():
        assert torch.equal(value, whole.model().state_dict()[name])
        assert torch.equal(value, best.model().state_dict()[name])
    assert bare(folder, tmp_path / "run", "--resume") == 0
    assert "nothing left to do: all 3 epochs are done (more with --epochs); best epoch 3; " in capsys.readouterr().out


def test_a_run_ends_where_no_epoch_is_better_for_long(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted among the epochs that are not better, it goes on counting; then nothing is left to do."""
    out = tmp_path / "run"
    still = ["--learning-rate", "1e-30", "--patience", "3", "--epochs", "9"]  # so no epoch is better than the first
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(folder, out, *still) == 130
    assert bare(folder, out, "--resume") == 0
    assert "after epoch 1 there were 3 without a better one (--patience)" in capsys.readouterr().out
    progress = checkpoint.load(out / "last.safetensors").progress
    assert (progress.epoch, progress.best_epoch) == (4, 1)
    assert bare(folder, out, "--resume") == 0
    assert "nothing left to do: after epoch 1 there were 3 without" in capsys.readouterr().out
    assert checkpoint.load(out / "last.safetensors").progress.epoch == 4
    assert bare(folder, out, "--resume", "--patience", "5") == 0
    last = checkpoint.load(out / "last.safetensors")
    assert (last.progress.epoch, last.train_config.patience) == (6, 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning-rate", "-1"], "expected a positive learning_rate, got -1.0"),
        (["--num-frames", "0"], "num_frames: Input should be greater than or equal to 1, got 0"),
        (["--policy", "rate"], "policy 'rate': expected rate, got none"),
        (["--window-length", "2"], "policy 'uniform': expected no parameters, got window_length"),
        (["--device", "abacus"], "--device abacus: "),
        (["--hidden", "8", "--output-modes", "2", "2", "2", "2"], "output_modes for the hidden size (2, 2, 2, 2)"),
        (["--mirror-horizontal", "left=up"], "expected pairs LABEL=LABEL"),
        (["--valid-fraction", "0", "--patience", "3"], "--patience: expected clips held back to decide by"),
        (["--valid-fraction", "0", "--schedule", "plateau"], "--schedule plateau: expected clips held back"),
    ],
)
def test_what_does_not_fit_is_one_line_before_decoding(
    more: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "DecodedClips", None)
    assert run(folder, tmp_path / "run", *more) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1
    assert "pydantic" not in printed


def test_threads_are_a_positive_number(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(folder, tmp_path / "run", "--threads", "0")
    assert "argument --threads: expected a whole number of at least 1, got 0" in capsys.readouterr().err


def test_a_folder_of_broken_clips_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "clips" / label / f"{i}.mp4").write_bytes(b"no")
    (tmp_path / "clips" / "a" / "2.mp5").write_bytes(b"no")
    assert run(tmp_path / "clips", tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert "warning: left out 1 files by their suffix (.mp5)" in printed
    assert "left out 4 of 4 clips that could not be read" in printed
    assert "0 clips to train on and 0 to choose by can be read" in printed


def test_a_missing_torch_says_what_to_install(tmp_path: Path) -> None:
    for module, names in (("ttmodels.train", "torch"), ("ttmodels.evaluate", "torch"), ("exporters.to_onnx", "onnx")):
        script = f"import sys, runpy; sys.modules['{names}'] = None; runpy.run_module('{module}', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == (
            f"error: needs {names}: in a clone of ttvideo, pip install -c deploy/constraints.txt '.[train]'\n"
        )


def test_evaluation_says_what_it_did_not_see(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "run", "--epochs", "1") == 0
    (tmp_path / "some" / "left").mkdir(parents=True)
    shutil.copy(folder / "left" / "0.mp4", tmp_path / "some" / "left")
    (tmp_path / "some" / "left" / "notes.txt").write_text("hello")
    (tmp_path / "some" / "left" / "broken.mp4").write_text("no")
    capsys.readouterr()
    best = str(tmp_path / "run" / "best.safetensors")
    assert evaluation.main([best, "--data", str(tmp_path / "some")]) == 0
    printed = capsys.readouterr()
    assert "warning: no clips of right" in printed.err
    assert "left out 1 files by their suffix (.txt)" in printed.err
    assert "left out 1 of 2 clips that could not be read" in printed.err
    assert "rows: true class; columns: predicted class" in printed.out
    assert "%|" not in printed.err  # bars are for terminals
    assert evaluation.main([best, "--data", str(folder), "--write", str(tmp_path)]) == 2
    assert "--write: expected a file to write, found a folder" in capsys.readouterr().err
    assert evaluation.main([best, "--data", str(folder), "--write", best]) == 2
    assert "--write: expected another file than what is read" in capsys.readouterr().err
    assert evaluation.main([str(folder / "left" / "0.mp4"), "--data", str(folder)]) == 2
    assert "expected a safetensors file" in capsys.readouterr().err


def test_a_wrong_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: expected a folder with one sub-folder per class")

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.made import write_folder
from tests.tolerances import SHARED_OUT
from ttmodels import checkpoint
from ttmodels.distributed import Team, joined

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
LABELS = ("left", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder(tmp_path_factory.mktemp("clips"), LABELS, 12)
    (root / "left" / "broken.mp4").write_bytes(b"no")
    return root


def start(command: list[str], folder: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    size = ["--num-frames", "4", "--width", "16", "--height", "12", "--hidden", "16", "--rank", "3"]
    clips = ["--data", str(folder), "--out", str(out), "--cache", str(out.parent / f"cache of {out.name}")]
    arguments = [*command, "ttmodels.train", *clips, "--threads", "1", *size, *more]
    return subprocess.run(arguments, capture_output=True, text=True)


def test_a_process_alone_is_a_team_of_one() -> None:
    with joined("cpu") as team:
        assert team == Team("cpu")
        assert team.first
        model = torch.nn.Linear(2, 2)
        assert team.network(model) is model
        assert (team.sum(3.5), team.of_first(lambda: "word")) == (3.5, "word")
        assert list(team.share(np.arange(3))) == [0, 1, 2]


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_every_row_of_a_batch_is_in_one_share(rows: int) -> None:
    shares = [Team("cpu", rank, 3).share(np.arange(rows)) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="--device abacus: "), joined("abacus"):
        pass


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    """Whatever the clips' changes, weights, penalties and the last batch, which is of one clip. What they end with is
    one model, and one of them speaks."""
    more = ["--epochs", "2", "--batch-size", "7", "--valid-fraction", "0.1", "--learning-rate", "0.02"]
    more += ["--crop", "0.5", "--gain", "0.3", "--kernel-l2", "0.01", "--class-weights", "balanced"]
    more += ["--label-smoothing", "0.1", "--over-time-weight", "0.3"]
    one = start([sys.executable, "-m"], folder, tmp_path / "one", *more)
    two = start(TORCHRUN, folder, tmp_path / "two", *more)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    expected, got = (checkpoint.load(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert expected.progress.num_clips["train"] % 7 == 1
    for before, after in zip(expected.progress.history, got.progress.history, strict=True):
        for name in ("train_loss", "valid_loss", "valid_score"):
            assert after[name] == pytest.approx(before[name], abs=SHARED_OUT)
    assert expected.progress.best_epoch == got.progress.best_epoch
    for name in ("best.safetensors", "last.safetensors"):
        model, same = (checkpoint.load(tmp_path / run / name).model().state_dict() for run in ("one", "two"))
        assert all(torch.allclose(same[key], tensor, atol=SHARED_OUT) for key, tensor in model.items())
    assert two.stdout.count("epoch 2: train loss") == 1
    assert two.stderr.count("broken.mp4") == 1
    assert (
        two.stdout.replace(str(tmp_path / "two"), str(tmp_path / "one")).splitlines()[-4:]
        == one.stdout.splitlines()[-4:]
    )

    again = start(TORCHRUN, folder, tmp_path / "two", "--resume", "--epochs", "3")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("epoch 3: train loss") == 1


@pytest.mark.slow
def test_what_the_first_process_alone_finds_wrong_ends_all_and_is_said_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache of run").write_text("a file in the place of the folder")
    done = start(TORCHRUN, folder, tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "cache of run: File exists" in done.stderr
    assert "ttmodels/train.py" not in done.stderr  # in a traceback of ours; torchrun has one of its own

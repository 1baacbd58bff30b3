"""Logs of a run: log.csv, and what TensorBoard would show."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from ttmodels.logs import RunLog

HISTORY = [
    {"train_loss": 1.5, "valid_loss": 1.25, "valid_score": 0.25, "learning_rate": 0.125, "seconds": 2.0},
    {"train_loss": 1.0, "valid_loss": 0.75, "valid_score": 0.5, "learning_rate": 0.0625, "seconds": 2.5},
    {"train_loss": 0.5, "valid_loss": 1.0, "valid_score": 0.75, "learning_rate": 0.0, "seconds": 2.25},
]


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The points [(epoch, value)] of each curve in a run's TensorBoard files: TFRecords of a length and its checksum,
    an Event and its checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((out / "tensorboard").iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_epoch_is_a_line_and_a_point_of_each_curve(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch in range(4):
        log.write(HISTORY[:epoch])
    log.close()
    assert [{name: float(value) for name, value in line.items()} for line in lines(tmp_path)] == [
        {"epoch": epoch, **entry} for epoch, entry in enumerate(HISTORY, 1)
    ]
    found = curves(tmp_path)
    assert found["loss/train"] == [(1, 1.5), (2, 1.0), (3, 0.5)]
    assert found["score/valid"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert set(found) == {"loss/train", "loss/valid", "score/valid", "run/learning_rate", "run/seconds"}


@pytest.mark.parametrize("logged", [1, 2, 3])
def test_a_resumed_run_has_the_epochs_of_its_checkpoint_once(logged: int, tmp_path: Path) -> None:
    """Whether it broke off before the second epoch's line, after it, or after that of a third which was not saved."""
    log = RunLog(tmp_path)
    log.write(HISTORY[:logged])
    log.close()
    log = RunLog(tmp_path)
    log.write(HISTORY[:2])
    log.close()
    assert [line["epoch"] for line in lines(tmp_path)] == ["1", "2"]
    assert curves(tmp_path)["loss/valid"] == [(1, 1.25), (2, 0.75)]
    log = RunLog(tmp_path)
    for epoch in (2, 3):
        log.write(HISTORY[:epoch])
    log.close()
    assert [line["train_loss"] for line in lines(tmp_path)] == ["1.5", "1.0", "0.5"]
    assert curves(tmp_path)["loss/valid"] == [(1, 1.25), (2, 0.75), (3, 1.0)]


def test_figures_that_older_epochs_lack_are_empty(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write([{"train_loss": 2.0}, HISTORY[0]])
    log.close()
    assert [line["seconds"] for line in lines(tmp_path)] == ["", "2.0"]
    assert curves(tmp_path)["run/seconds"] == [(2, 2.0)]

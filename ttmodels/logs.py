"""A run's epochs, for those who watch: OUT/log.csv, and OUT/tensorboard for `tensorboard --logdir`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ttmodels.atomic import in_place_of

TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/valid",
    "valid_score": "score/valid",
    "learning_rate": "run/learning_rate",
    "seconds": "run/seconds",
}
"""What TensorBoard calls the figures of an epoch."""


class RunLog:
    """Both logs of a run. They are made of the history in its checkpoint, anew where it is resumed, so that no epoch is
    in them twice or lost, wherever a run broke off."""

    def __init__(self, out: Path) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        self._csv, board = out / "log.csv", out / "tensorboard"
        for file in board.glob("events.out.tfevents.*"):
            file.unlink()
        self._board = SummaryWriter(str(board))
        self._num_shown = 0

    def write(self, history: Sequence[dict[str, float]]) -> None:
        """Every epoch so far: a line of log.csv each, and a point of each curve."""
        columns = ["epoch", *dict.fromkeys(name for entry in history for name in entry)]
        with in_place_of(self._csv) as part, part.open("w", newline="") as file:
            rows = csv.DictWriter(file, columns)
            rows.writeheader()
            rows.writerows({"epoch": epoch, **entry} for epoch, entry in enumerate(history, 1))
        for epoch, entry in enumerate(history[self._num_shown :], self._num_shown + 1):
            for name, value in entry.items():
                self._board.add_scalar(TAGS.get(name, f"run/{name}"), value, epoch)
        self._num_shown = len(history)
        self._board.flush()

    def close(self) -> None:
        self._board.close()

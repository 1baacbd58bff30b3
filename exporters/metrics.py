"""Figures of an evaluation, on their way from `ttmodels.evaluate --write` into a model file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from service.manifest import Metrics
from ttmodels.checkpoint import Checkpoint, MLPCheckpoint
from ttmodels.commandline import plain
from ttmodels.evaluate import Figures


def read(paths: Sequence[Path], saved: Checkpoint | MLPCheckpoint, temperature: float | None = None) -> list[Metrics]:
    """The figures of each file; one that does not say which checkpoint it is of is told on standard error. Those of the
    probabilities are left out, which is told too, where the model file has another temperature than the checkpoint.

    Raises:
        ValueError: no such figures, those of another checkpoint, some that cannot be true of the model, or a split that
            comes twice; names the file.
    """
    found: list[Metrics] = []
    for path in paths:
        figures = _read(path)
        expected, got = saved.sha256, figures.checkpoint_sha256
        if got is None:
            print(f"note: {path} does not say which checkpoint it is of; taken for {saved.path}", file=sys.stderr)
        elif got != expected:
            raise ValueError(
                f"{path}: expected figures of {saved.path}, SHA-256 {expected}, got those of another checkpoint, {got}"
            )
        if fault := _fault(figures, len(saved.model_config.labels)):
            raise ValueError(f"{path}: {fault}")
        if any(figures.split == other.split for other in found):
            raise ValueError(f"{path}: expected each split once, got {figures.split!r} again")
        left_out = {"checkpoint_sha256"}
        if figures.loss is not None and temperature not in (None, saved.progress.temperature):
            left_out |= {"loss", "calibration_error"}
            print(f"note: {path}: its loss and calibration error, at the temperature {saved.progress.temperature:g}, "
                  f"are left out of a file with {temperature:g}", file=sys.stderr)  # fmt: skip
        found.append(Metrics.model_validate(figures.model_dump(exclude=left_out)))
    return found


def _read(path: Path) -> Figures:
    try:
        return Figures.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected figures by `ttmodels.evaluate --write`: {plain(error)}") from error


def _fault(figures: Metrics, num_labels: int) -> str | None:
    """What cannot be true of a model with so many labels."""
    if not 0 <= figures.accuracy <= 1:
        return f"accuracy: expected a share from 0 to 1, got {figures.accuracy}"
    if not 0 <= (figures.mean_ap or 0) <= 1:
        return f"mean_ap: expected a share from 0 to 1, got {figures.mean_ap}"
    if figures.num_clips < 1:
        return f"num_clips: expected at least 1, got {figures.num_clips}"
    if figures.confusion is None:
        return None
    sizes = [len(row) for row in figures.confusion]
    if sizes != [num_labels] * num_labels:
        return f"confusion: expected {num_labels} rows of {num_labels}, as the model has labels, got rows of {sizes}"
    counts = [count for row in figures.confusion for count in row]
    if min(counts) < 0 or sum(counts) != figures.num_clips:
        return f"confusion: expected counts that sum to num_clips, {figures.num_clips}, got a sum of {sum(counts)}"
    return None

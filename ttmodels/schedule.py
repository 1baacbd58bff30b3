"""How the learning rate goes, and when a run ends. Both follow from the configuration and from what has been, so that
a resumed run needs no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ttmodels.checkpoint import Progress
from ttmodels.config import TrainConfig

PLATEAU_FACTOR = 0.3
"""By which the learning rate is multiplied where the validation loss falls no more."""


def schedule(config: TrainConfig, done: float, valid_losses: Sequence[float]) -> float:
    """Factor of the learning rate: linear warm-up, then by the schedule.

    Args:
        done: share of all steps, 0 to 1.
        valid_losses: of the epochs so far.
    """
    if done < config.warmup:
        return done / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "plateau":
        return math.pow(PLATEAU_FACTOR, _plateaus(valid_losses, config.plateau_epochs))
    left = (1 - done) / (1 - config.warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def _plateaus(losses: Sequence[float], epochs: int) -> int:
    """How often there were so many epochs in a row of which none had a loss below all before."""
    lowest, since, count = math.inf, 0, 0
    for loss in losses:
        since = 0 if loss < lowest else since + 1
        lowest = min(lowest, loss)
        if since == epochs:
            since, count = 0, count + 1
    return count


def ended(config: TrainConfig, progress: Progress) -> str:
    """Why there is no other epoch; "" where there is one."""
    if progress.epoch >= config.epochs:
        return f"all {config.epochs} epochs are done"
    if config.patience and progress.epoch - progress.best_epoch >= config.patience:
        return f"after epoch {progress.best_epoch} there were {config.patience} without a better one (--patience)"
    return ""

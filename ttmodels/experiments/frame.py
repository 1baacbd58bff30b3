"""What all experiments share: the same fit for every model, over seeds, finished seeds kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels.atomic import in_place_of

Split = tuple[Tensor, Tensor]
"""Inputs and int64 targets, as many."""


@dataclass(frozen=True)
class Data:
    """Three splits that share nothing: to fit, to stop by, to report."""

    train: Split
    valid: Split
    test: Split


@dataclass(frozen=True)
class Fit:
    """How models are fitted: AdamW, its rate falling to 0 by half a cosine; the best epoch of validation is kept."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    """Epochs without a better validation accuracy, or an equal one at a lower loss, after which the fit ends."""


@dataclass(frozen=True)
class Outcome:
    """One model fitted from one seed."""

    accuracy: float
    """On the test split, of the best epoch."""
    num_parameters: int
    best_epoch: int
    num_epochs: int
    epoch_s: float
    """Mean time of an epoch, validation left out."""


class Experiment(ABC):
    """One experiment: its data, its models, how all of them are fitted."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What the data are and what differs from the published setting, for RESULTS.md."""
    source: ClassVar[str]
    """Where the published figures are from."""
    published: ClassVar[Mapping[str, str]]
    """Of every model, in the table's order: the published test accuracy, or a dash."""
    fit: ClassVar[Fit]
    """Of all models, but for what `fit_of` says."""
    needs_data: ClassVar[bool] = True
    """Whether its data come from outside; otherwise it makes them."""

    @abstractmethod
    def load(self, folder: Path | None, seed: int) -> Data:
        """The data, with the splits of this seed.

        Raises:
            FileNotFoundError: they are not in the folder; says where to get them.
        """

    @abstractmethod
    def made(self, seed: int) -> Data:
        """Few and small data of the same form, for --quick."""

    @abstractmethod
    def model(self, label: str) -> nn.Module:
        """A new model of the table's row `label`: inputs -> logits."""

    def fit_of(self, label: str) -> Fit:
        """How a model is fitted: as all are, where none has a rate of its own."""
        return self.fit

    def varied(self, x: Tensor) -> Tensor:
        """A training batch with other samples of the same classes in the place of its own."""
        return x


def run(
    experiment: Experiment, data_folder: Path | None, label: str, seed: int, kept: Path, *, quick: bool = False
) -> Outcome:
    """One model from one seed; read from the folder `kept` where it has been finished, else put there."""
    fit = experiment.fit_of(label)
    if quick:
        fit = dataclasses.replace(fit, epochs=2)
    path, settings = _place(experiment, label, seed, kept, fit)
    if (done := _read(path, settings)) is not None:
        return done
    data = experiment.made(seed) if quick else experiment.load(data_folder, seed)
    torch.manual_seed(seed)
    outcome = fitted(experiment.model(label), data, fit, experiment.varied)
    with in_place_of(path) as part:
        part.write_text(json.dumps({"settings": settings, "outcome": dataclasses.asdict(outcome)}, indent=2) + "\n")
    return outcome


def finished(experiment: Experiment, kept: Path, seeds: Sequence[int]) -> dict[str, dict[int, Outcome]]:
    """What is in the folder `kept` of these seeds, by model and seed."""
    found: dict[str, dict[int, Outcome]] = {}
    for label in experiment.published:
        places = {seed: _place(experiment, label, seed, kept, experiment.fit_of(label)) for seed in seeds}
        found[label] = {seed: done for seed, place in places.items() if (done := _read(*place))}
    return found


def _place(experiment: Experiment, label: str, seed: int, kept: Path, fit: Fit) -> tuple[Path, dict[str, Any]]:
    """The file of a run, and the settings that make it that run."""
    settings = {"experiment": experiment.name, "model": label, "seed": seed, **dataclasses.asdict(fit)}
    return kept / f"{label}-seed{seed}.json", settings


def _read(path: Path, settings: dict[str, Any]) -> Outcome | None:
    """None where there is no such file, or one of other settings."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    return Outcome(**saved["outcome"]) if saved["settings"] == settings else None


def fitted(model: nn.Module, data: Data, fit: Fit, varied: Callable[[Tensor], Tensor]) -> Outcome:
    """Fit a model, stop by the validation split, look at the test split once."""
    optimizer = torch.optim.AdamW(model.parameters(), fit.learning_rate, weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.epochs)
    best, best_epoch, weights = (-1.0, 0.0), 0, model.state_dict()
    seconds = []
    for epoch in range(1, fit.epochs + 1):
        started = time.perf_counter()
        model.train()
        for x, y in batches(data.train, fit.batch_size, shuffle=True):
            loss = functional.cross_entropy(model(varied(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - started)
        accuracy, valid_loss = evaluated(model, data.valid)
        if (accuracy, -valid_loss) > best:
            best, best_epoch, weights = (accuracy, -valid_loss), epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= fit.patience:
            break
    model.load_state_dict(weights)
    accuracy, _ = evaluated(model, data.test)
    num_parameters = sum(p.numel() for p in model.parameters())
    return Outcome(accuracy, num_parameters, best_epoch, len(seconds), statistics.fmean(seconds))


def batches(split: Split, size: int, *, shuffle: bool = False) -> Iterator[Split]:
    """Every sample once."""
    x, y = split
    order = torch.randperm(len(y)) if shuffle else torch.arange(len(y))
    return ((x[part], y[part]) for part in order.split(size))


@torch.no_grad()
def evaluated(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    model.eval()
    num_right, loss = 0, 0.0
    for x, y in batches(split, 512):
        logits = model(x)
        num_right += int((logits.argmax(1) == y).sum())
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
    return num_right / len(split[1]), loss / len(split[1])


def parted(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """A split in two, class by class; `share` of each class is in the second."""
    x, y = split
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = (y == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[: round(share * len(members))]
        second[members[chosen]] = True
    return (x[~second], y[~second]), (x[second], y[second])

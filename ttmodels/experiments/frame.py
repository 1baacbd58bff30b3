"""What all experiments share: the same fit for every model, over seeds, finished seeds kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ttmodels.atomic import in_place_of
from ttmodels.experiments.measures import CLASSES, Measure

Split = tuple[Tensor, Tensor]
"""Inputs and targets, as many: int64 classes, or float32 values [samples, values]."""


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
    """Epochs without a better validation figure, or an equal one at a lower loss, after which the fit ends."""


@dataclass(frozen=True)
class Outcome:
    """One model fitted from one seed."""

    figures: Mapping[str, float]
    """By name, those of the experiment's measure: on the test split, of the best epoch."""
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
    """Of every model, in the table's order: the published test figure, or a dash."""
    fit: ClassVar[Fit]
    """Of all models, but for what `fit_of` says."""
    measure: ClassVar[Measure] = CLASSES
    needs_data: ClassVar[bool] = True
    """Whether its data come from outside; otherwise it makes them."""

    def part(self, label: str) -> Experiment:
        """The experiment that a row of the table is of: another one, where the rows are of several data sets."""
        return self

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
    experiment = experiment.part(label)
    fit = experiment.fit_of(label)
    if quick:
        fit = dataclasses.replace(fit, epochs=2)
    path, settings = _place(experiment, label, seed, kept, fit)
    if (done := _read(path, settings, experiment.measure)) is not None:
        return done
    data = experiment.made(seed) if quick else experiment.load(data_folder, seed)
    torch.manual_seed(seed)
    outcome = fitted(experiment.model(label), data, fit, experiment.varied, experiment.measure)
    values = dataclasses.asdict(outcome)
    saved = {"settings": settings, "outcome": values.pop("figures") | values}
    with in_place_of(path) as part:
        part.write_text(json.dumps(saved, indent=2) + "\n")
    return outcome


def finished(experiment: Experiment, kept: Path, seeds: Sequence[int]) -> dict[str, dict[int, Outcome]]:
    """What is in the folder `kept` of these seeds, by model and seed."""
    found: dict[str, dict[int, Outcome]] = {}
    for label in experiment.published:
        part = experiment.part(label)
        places = {seed: _place(part, label, seed, kept, part.fit_of(label)) for seed in seeds}
        found[label] = {seed: done for seed, place in places.items() if (done := _read(*place, part.measure))}
    return found


def _place(experiment: Experiment, label: str, seed: int, kept: Path, fit: Fit) -> tuple[Path, dict[str, Any]]:
    """The file of a run, and the settings that make it that run."""
    settings = {"experiment": experiment.name, "model": label, "seed": seed, **dataclasses.asdict(fit)}
    return kept / f"{label}-seed{seed}.json", settings


def _read(path: Path, settings: dict[str, Any], measure: Measure) -> Outcome | None:
    """None where there is no such file, or one of other settings or figures."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    values = saved["outcome"]
    if saved["settings"] != settings or not measure.figures.keys() <= values.keys():
        return None
    return Outcome({name: values.pop(name) for name in measure.figures}, **values)


def fitted(
    model: nn.Module, data: Data, fit: Fit, varied: Callable[[Tensor], Tensor], measure: Measure = CLASSES
) -> Outcome:
    """Fit a model, stop by the validation split, look at the test split once."""
    optimizer = torch.optim.AdamW(model.parameters(), fit.learning_rate, weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.epochs)
    best, best_epoch, weights = (-math.inf, -math.inf), 0, model.state_dict()
    seconds = []
    for epoch in range(1, fit.epochs + 1):
        started = time.perf_counter()
        model.train()
        for x, y in batches(data.train, fit.batch_size, shuffle=True):
            loss = measure.loss(model(varied(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - started)
        outputs = predicted(model, data.valid[0])
        better = measure.figures[measure.best_by], measure.loss
        figure, valid_loss = (float(of(outputs, data.valid[1])) for of in better)
        if (figure, -valid_loss) > best:
            best, best_epoch, weights = (figure, -valid_loss), epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= fit.patience:
            break
    model.load_state_dict(weights)
    outputs = predicted(model, data.test[0])
    figures = {name: of(outputs, data.test[1]) for name, of in measure.figures.items()}
    num_parameters = sum(p.numel() for p in model.parameters())
    return Outcome(figures, num_parameters, best_epoch, len(seconds), statistics.fmean(seconds))


def batches(split: Split, size: int, *, shuffle: bool = False) -> Iterator[Split]:
    """Every sample once."""
    x, y = split
    order = torch.randperm(len(y)) if shuffle else torch.arange(len(y))
    return ((x[part], y[part]) for part in order.split(size))


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of all inputs, without dropout."""
    model.eval()
    return torch.cat([model(part) for part in x.split(512)])


def parted(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """A split in two, class by class where there are classes; `share` of each is in the second."""
    x, y = split
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(y), dtype=torch.bool)
    strata = torch.zeros(len(y)) if y.is_floating_point() else y
    for stratum in strata.unique():
        members = (strata == stratum).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[: round(share * len(members))]
        second[members[chosen]] = True
    return (x[~second], y[~second]), (x[second], y[second])

"""What experiments on data in RAM share: the same fit for every model."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ttmodels.experiments.measures import CLASSES, Measure
from ttmodels.experiments.study import Outcome, Study

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


class Experiment(Study):
    """One experiment: its data, its models, how all of them are fitted."""

    fit: ClassVar[Fit]
    """Of all models, but for what `fit_of` says."""
    measure: ClassVar[Measure] = CLASSES
    looks: ClassVar[tuple[str, ...]] = ()
    """Names of the figures that `look` gives, beside those of the measure."""

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

    def look(self, model: nn.Module, data: Data, kept: Path) -> Mapping[str, float]:
        """Figures that only the fitted model itself can give; pictures of it may be put beside `kept`."""
        return {}

    @property
    def figures(self) -> tuple[str, ...]:
        return (*self.measure.figures, *self.looks)

    def settings(self, label: str, *, quick: bool = False) -> dict[str, Any]:
        return dataclasses.asdict(self._fit(label, quick=quick))

    def num_parameters(self, label: str) -> int:
        return sum(p.numel() for p in self.model(label).parameters())

    def num_epochs(self, label: str) -> int:
        return self.fit_of(label).epochs

    def outcome(self, label: str, seed: int, data_folder: Path | None, kept: Path, *, quick: bool) -> Outcome:
        data = self.made(seed) if quick else self.load(data_folder, seed)
        torch.manual_seed(seed)
        model = self.model(label)
        outcome = fitted(model, data, self._fit(label, quick=quick), self.varied, self.measure)
        return dataclasses.replace(outcome, figures={**outcome.figures, **self.look(model, data, kept)})

    def _fit(self, label: str, *, quick: bool) -> Fit:
        return dataclasses.replace(self.fit_of(label), epochs=2) if quick else self.fit_of(label)


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

"""What nips2003 and gene_expression share: a network of one hidden layer on rows of features, dense or TT."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels.experiments.frame import Data, Experiment, parted
from ttmodels.experiments.study import Section, Study
from ttmodels.linear import TTLinear

Table = tuple[np.ndarray, np.ndarray]
"""Features [rows, features] and targets, as many: int64 classes, or float32 values [rows, values]."""


class FeatureSet(Experiment):
    """One data set: features -> hidden, relu, dropout, and a dense head. Dense and TT differ in the hidden weight."""

    input_modes: ClassVar[Sequence[int]]
    """Their product is the number of features, or more than it; those behind them are 0."""
    output_modes: ClassVar[Sequence[int]]
    ranks: ClassVar[Sequence[int] | int]
    num_outputs: ClassVar[int] = 2
    dropout: ClassVar[float] = 0.5

    @abstractmethod
    def tables(self, folder: Path | None, seed: int) -> tuple[Table, Table]:
        """What is not tested, and what is."""

    @abstractmethod
    def made_table(self, num_rows: int, rng: np.random.Generator) -> Table:
        """Rows of the same form."""

    def prepared(self, train: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features as the models read them, by what is known from the rows to fit."""
        return standardised(train, *rest)

    def load(self, folder: Path | None, seed: int) -> Data:
        return self._parted(*self.tables(folder, seed), seed)

    def made(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        return self._parted(self.made_table(40, rng), self.made_table(20, rng), seed)

    def _parted(self, known: Table, test: Table, seed: int) -> Data:
        """A fifth of what is not tested is to stop by. Features are in the order of their relevance in the rest."""
        y = torch.from_numpy(known[1])
        (fit, fit_y), (stop, stop_y) = parted((torch.arange(len(y)), y), 0.2, seed)
        parts = self.prepared(known[0][fit.numpy()], known[0][stop.numpy()], test[0])
        order = np.argsort(-relevance(parts[0], known[1][fit.numpy()]), kind="stable")
        behind = math.prod(self.input_modes) - len(order)
        x = [functional.pad(torch.from_numpy(part[:, order]), (0, behind)) for part in parts]
        return Data((x[0], fit_y), (x[1], stop_y), (x[2], torch.from_numpy(test[1])))

    def model(self, label: str) -> nn.Module:
        """The head begins at 0: at first all classes are as likely, and values at their mean."""
        hidden = math.prod(self.output_modes)
        tt = self.input_modes, self.output_modes, self.ranks
        dense = (math.prod(self.input_modes),), (hidden,), 1  # one core is a dense matrix
        head = nn.Linear(hidden, self.num_outputs)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(
            Floats(),
            TTLinear(*(tt if label.endswith("TT") else dense), activation="relu"),
            nn.Dropout(self.dropout),
            head,
        )


class FeatureSets(Section):
    """A section with the rows SET-dense and SET-TT of several data sets."""

    sets: ClassVar[Mapping[str, type[FeatureSet]]]

    def part(self, label: str) -> Study:
        return self.sets[label.split("-")[0]]()


class Floats(nn.Module):
    """Inputs that are kept as bytes, as the layers take them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def standardised(train: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each feature with mean 0 and deviation 1 in `train`, and the rest likewise; one that is constant there is 0."""
    mean, deviation = train.mean(0), train.std(0)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return tuple(((x - mean) * scale).astype(np.float32) for x in (train, *rest))


def relevance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the targets each feature alone tells: its squared correlations with them, added up.

    Classes count as a target each, which is 1 in its rows. A train of cores tells features apart by their place, first
    by which block of neighbours they are in; where alike ones are neighbours, small ranks go far.
    """
    targets = np.eye(y.max() + 1, dtype=np.float32)[y] if y.dtype == np.int64 else y
    (zx,), (zy,) = standardised(x.astype(np.float32)), standardised(targets)
    told: np.ndarray = ((zx.T @ zy / len(y)) ** 2).sum(1)
    return told

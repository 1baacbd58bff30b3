from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ttmodels.experiments import frame
from ttmodels.experiments.frame import Data, Experiment, Fit, Split, fitted, parted
from ttmodels.experiments.measures import VALUES, accuracy


def points(count: int, seed: int, shift: float = 0.0) -> Split:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x + shift, (x[:, 0] > 0).long()


class Halves(Experiment):
    name = "halves"
    about = "points left or right"
    source = "nobody"
    published: ClassVar = {"linear": ".5"}
    fit = Fit(epochs=20, batch_size=16, learning_rate=0.05, weight_decay=0.0, patience=20)
    needs_data = False

    def load(self, folder: Path | None, seed: int) -> Data:
        return Data(points(200, 1), points(100, 2), points(100, 3))

    def made(self, seed: int) -> Data:
        return self.load(None, seed)

    def model(self, label: str) -> nn.Module:
        return nn.Linear(4, 2)


def test_it_learns() -> None:
    halves = Halves()
    outcome = fitted(halves.model("linear"), halves.load(None, 0), halves.fit, halves.varied)
    assert outcome.figures["accuracy"] > 0.9
    assert outcome.num_parameters == 10
    assert 1 <= outcome.best_epoch <= outcome.num_epochs == 20


def test_the_best_epoch_is_the_one_reported() -> None:
    """Each epoch spoils the model more; what is tested is the first."""
    halves = Halves()
    x, y = points(200, 1)
    wrong = Data((x, 1 - y), points(100, 2), points(100, 3))
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-3.0, 0, 0, 0], [3, 0, 0, 0]]))
    fit = Fit(epochs=50, batch_size=16, learning_rate=0.05, weight_decay=0.0, patience=3)
    outcome = fitted(model, wrong, fit, halves.varied)
    assert outcome.best_epoch < outcome.num_epochs == outcome.best_epoch + 3
    assert outcome.figures["accuracy"] > 0.9
    assert accuracy(frame.predicted(model, wrong.test[0]), wrong.test[1]) == outcome.figures["accuracy"]


def test_the_test_split_stops_nothing() -> None:
    halves = Halves()

    def weights(test: Split) -> Tensor:
        torch.manual_seed(0)
        model = halves.model("linear")
        fitted(model, Data(points(200, 1), points(100, 2), test), halves.fit, halves.varied)
        return next(model.parameters())

    assert torch.equal(weights(points(100, 3)), weights(points(100, 4, shift=2.0)))


class Sums(Halves):
    """Two sums of the points' coordinates."""

    name = "sums"
    published: ClassVar = {"linear": "0", "constant": "-"}
    measure = VALUES

    def load(self, folder: Path | None, seed: int) -> Data:
        sums = torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 0]])
        train, valid, test = (points(count, seed)[0] for count, seed in ((200, 1), (100, 2), (100, 3)))
        return Data((train, train @ sums.T), (valid, valid @ sums.T), (test, test @ sums.T))


def test_values_are_learned() -> None:
    sums = Sums()
    data = sums.load(None, 0)
    outcome = fitted(sums.model("linear"), data, sums.fit, sums.varied, sums.measure)
    assert outcome.figures["MSE"] < 0.1
    assert outcome.figures["R²"] > 0.97


def test_a_split_in_two_holds_everything_once() -> None:
    y = torch.arange(100) % 4
    x = torch.arange(100.0)[:, None]
    (a, la), (b, lb) = parted((x, y), 0.2, 0)
    assert sorted(torch.cat([a, b]).squeeze(1).tolist()) == list(range(100))
    assert torch.bincount(lb).tolist() == [5] * 4
    assert torch.equal(la, y[a.squeeze(1).long()])
    assert torch.equal(parted((x, y), 0.2, 0)[1][0], b)
    assert not torch.equal(parted((x, y), 0.2, 1)[1][0], b)
    (_, left), (_, right) = parted((x, x.clone()), 0.2, 0)
    assert (len(left), len(right)) == (80, 20)

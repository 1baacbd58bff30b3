"""What a fit makes small, and what is told of a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sklearn import metrics
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Measure:
    """A loss and figures, each of outputs [samples, classes or values] and their targets."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """Its mean over the samples."""
    figures: Mapping[str, Callable[[Tensor, Tensor], float]]
    """In the table's order: the first are those that the published figures are of."""
    best_by: str
    """The figure that the best epoch has the highest of, in the validation split."""


def accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


def balanced_accuracy(logits: Tensor, y: Tensor) -> float:
    """The mean over the classes of what share of each is right."""
    return float(metrics.balanced_accuracy_score(y.numpy(), logits.argmax(1).numpy()))


def auc(logits: Tensor, y: Tensor) -> float:
    """Of two classes: how often one of the second has a higher margin than one of the first."""
    return float(metrics.roc_auc_score(y.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))


def mean_squared_error(values: Tensor, y: Tensor) -> float:
    return float(functional.mse_loss(values, y))


def r2(values: Tensor, y: Tensor) -> float:
    """1 less the squared error's share of the variance, over all targets together: it ranks as the error does."""
    return float(metrics.r2_score(y.numpy(), values.numpy(), multioutput="variance_weighted"))


CLASSES = Measure(functional.cross_entropy, {"accuracy": accuracy}, "accuracy")
TWO_CLASSES = Measure(
    functional.cross_entropy, {"accuracy": accuracy, "balanced accuracy": balanced_accuracy, "AUC": auc}, "AUC"
)
"""By AUC, since an accuracy over the few samples of a small set is coarse, and blind where most are of one class."""
VALUES = Measure(functional.mse_loss, {"MSE": mean_squared_error, "R²": r2}, "R²")

import pytest
import torch

from ttmodels.experiments.measures import accuracy, auc, balanced_accuracy, mean_squared_error, r2


def test_figures_of_classes() -> None:
    """Nine of the first class, all said to be of it but the last, and one of the second, said to be of the first."""
    y = torch.tensor([0] * 9 + [1])
    margins = torch.tensor([-9.0, -8, -7, -6, -5, -4, -3, -2, 1, -1])
    logits = torch.stack([-margins / 2, margins / 2], 1)
    assert accuracy(logits, y) == 0.8
    assert balanced_accuracy(logits, y) == pytest.approx(4 / 9)
    assert auc(logits, y) == pytest.approx(8 / 9)
    assert auc(logits + 5, y) == pytest.approx(8 / 9)


def test_figures_of_values() -> None:
    y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 0.1]) + 7
    values = y + 0.5
    assert mean_squared_error(values, y) == pytest.approx(0.25, rel=1e-5)
    error, spread = ((values - y) ** 2).sum(), ((y - y.mean(0)) ** 2).sum()
    assert r2(values, y) == pytest.approx(float(1 - error / spread), rel=1e-4)
    assert r2(y.mean(0).expand_as(y), y) == pytest.approx(0, abs=1e-5)

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif, r_regression

from ttmodels.experiments.features import relevance, standardised
from ttmodels.experiments.nips2003 import Madelon


def test_standardised_by_the_rows_to_fit_alone() -> None:
    rng = np.random.default_rng(0)
    train, other = rng.normal(3, 5, (50, 4)).astype(np.float32), rng.normal(0, 1, (20, 4)).astype(np.float32)
    train[:, 2] = 7
    a, b = standardised(train, other)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(a.std(0), [1, 1, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(b[:, 0], (other[:, 0] - train[:, 0].mean()) / train[:, 0].std(), rtol=1e-4)
    assert not b[:, 2].any()
    assert a.dtype == b.dtype == np.float32


def test_relevance_ranks_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 20)).astype(np.float32) + y[:, None] * rng.normal(size=20).astype(np.float32)
    f, _ = f_classif(x, y)
    assert np.array_equal(np.argsort(relevance(x, y)), np.argsort(f))
    values = rng.normal(size=(60, 3)).astype(np.float32) + x[:, :3]
    expected = sum(r_regression(x, values[:, k]) ** 2 for k in range(3))
    np.testing.assert_allclose(relevance(x, values), expected, rtol=1e-4, atol=1e-6)
    x[:, 5] = 1
    assert relevance(x, y)[5] == 0


def test_dense_and_tt_differ_in_the_hidden_weight_alone() -> None:
    dense, tt = (Madelon().model(label) for label in ("madelon-dense", "madelon-TT"))
    sizes = [{name: p.numel() for name, p in model.named_parameters()} for model in (dense, tt)]
    weights = [sum(numel for name, numel in size.items() if "cores" in name) for size in sizes]
    assert weights == [500 * 81, 5 * 3 * 5 + 2 * 5 * 5 * 3 * 5 + 5 * 4 * 3]
    rest = [{name: numel for name, numel in size.items() if "cores" not in name} for size in sizes]
    assert rest[0] == rest[1]


def test_a_model_begins_without_an_opinion() -> None:
    x = torch.randn(5, 500)
    for label in ("madelon-dense", "madelon-TT"):
        model = Madelon().model(label).eval()
        assert not model(x).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_row(seed: int) -> None:
    data = Madelon().made(seed)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [32, 8, 20]
    rows = torch.cat([data.train[0], data.valid[0], data.test[0]])
    assert len(rows.unique(dim=0)) == 60
    first, last = data.train[0][:, :50], data.train[0][:, -50:]  # those that tell, and the rest
    apart = [(x[data.train[1] == 1].mean(0) - x[data.train[1] == 0].mean(0)).abs().mean() for x in (first, last)]
    assert apart[0] > 2 * apart[1]

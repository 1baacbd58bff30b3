import numpy as np
import torch

from ttmodels.data.seglearn import WatchSignals
from ttmodels.experiments.seglearn import Seglearn, folds, segments


def test_segments_are_four_seconds_every_two() -> None:
    series = tuple(np.arange(6 * length, dtype=np.float32).reshape(length, 6) for length in (399, 400, 200))
    signals = WatchSignals(series, np.array([3, 0, 5]), np.array([1, 2, 2]), tuple("ABCDEF"))
    x, exercises, subjects = segments(signals)
    assert x.shape == (2 + 3 + 1, 200, 6)
    assert np.array_equal(x[1], series[0][100:300])
    assert np.array_equal(x[4], series[1][200:400])
    assert exercises.tolist() == [3, 3, 0, 0, 0, 5]
    assert subjects.tolist() == [1, 1, 2, 2, 2, 2]


def test_five_seeds_test_each_subject_once() -> None:
    subjects = np.repeat(np.arange(1, 11), 3)
    for first in (0, 5):
        tested = [set(subjects[folds(subjects, seed) == 0].tolist()) for seed in range(first, first + 5)]
        assert [len(some) for some in tested] == [2] * 5
        assert set.union(*tested) == set(range(1, 11))
    assert not np.array_equal(folds(subjects, 0), folds(subjects, 5))


def test_no_subject_is_on_two_sides() -> None:
    """Each subject's signals have a level of their own, by which it is known again."""
    subjects = np.repeat(np.arange(1, 11), 7)
    series = tuple(
        np.full((400, 6), subject) + np.random.default_rng(subject).normal(0, 0.1, (400, 6)) for subject in subjects
    )
    signals = WatchSignals(series, np.tile(np.arange(7), 10), subjects, tuple("ABCDEFG"))
    data = Seglearn._parted(signals, 3)
    levels = [x.mean((1, 2)) for x, _ in (data.train, data.valid, data.test)]
    assert [len(level) for level in levels] == [6 * 21, 2 * 21, 2 * 21]
    assert all(
        (a[:, None] - b).abs().min() > 0.1
        for a, b in ((levels[0], levels[1]), (levels[0], levels[2]), (levels[1], levels[2]))
    )
    known = data.train[0].reshape(-1, 6)
    torch.testing.assert_close(known.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(known.std(0), torch.ones(6), atol=1e-3, rtol=0)

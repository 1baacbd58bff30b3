import numpy as np
import pytest
import torch

from ttmodels.experiments.fiboclass import NUM_NUMBERS, FiboClass, bits, numbers, samples


def test_numbers_by_their_identities() -> None:
    """F(n) and L(n) by matrix powers and by each other; Padovan's by its other recurrence, of five steps."""
    fibonacci, lucas, padovan = (numbers(kind, NUM_NUMBERS) for kind in ("fibonacci", "lucas", "padovan"))
    assert fibonacci[:10] == [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    assert lucas[:8] == [2, 1, 3, 4, 7, 11, 18, 29]
    assert padovan[:12] == [1, 1, 1, 2, 2, 3, 4, 5, 7, 9, 12, 16]
    power = np.linalg.matrix_power(np.array([[1, 1], [1, 0]], dtype=object), NUM_NUMBERS)
    assert fibonacci[-1] == power[0, 1]
    assert all(lucas[n] == fibonacci[n - 2] + fibonacci[n] for n in range(2, NUM_NUMBERS))
    assert all(padovan[n] == padovan[n - 1] + padovan[n - 5] for n in range(5, NUM_NUMBERS))


def test_bits_are_the_numbers() -> None:
    values = numbers("fibonacci", NUM_NUMBERS)
    rows = bits(values)
    assert rows.shape == (NUM_NUMBERS, 512)
    assert [int("".join(map(str, row)), 2) for row in rows] == values


def test_samples_are_runs_of_one_sequence() -> None:
    x, y = samples(20, np.random.default_rng(0))
    assert x.shape == (80, 30, 512)
    assert y.tolist() == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20
    for kind, row in zip(("fibonacci", "lucas", "padovan"), x[10::20], strict=False):
        values = [int("".join(map(str, step)), 2) for step in row.int().tolist()]
        run = [value for value in values if value]
        assert len(run) >= 3
        assert values[: -len(run)] == [0] * (30 - len(run))
        known = numbers(kind, NUM_NUMBERS)
        assert any(known[start : start + len(run)] == run for start in range(NUM_NUMBERS))


def test_splits_share_no_sample() -> None:
    data = FiboClass().load(None, 0)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [
        pytest.approx(360, abs=2),
        450 - len(data.train[1]),
        750,
    ]
    again = FiboClass().load(None, 0)
    assert torch.equal(again.test[0], data.test[0])
    assert not torch.equal(FiboClass().load(None, 1).test[0], data.test[0])


def test_a_run_cut_shorter_is_a_run() -> None:
    x, _ = samples(20, np.random.default_rng(0))
    cut = FiboClass().varied(x)
    length, before = cut.any(2).sum(1), x.any(2).sum(1)
    assert (length >= 3).all()
    assert (length <= before).all()
    assert (length < before).any()
    for whole, part, kept in zip(x, cut, length.tolist(), strict=True):
        assert not part[:-kept].any() or kept == 30
        assert any(torch.equal(part[-kept:], whole[start : start + kept]) for start in range(31 - kept))

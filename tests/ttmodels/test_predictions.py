"""Figures of predictions, against torch and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix
from torch.nn import functional

from tests.tolerances import DOUBLE
from ttmodels.predictions import NUM_BINS, Predictions

LABELS = ("a", "b", "c", "d")
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(500, 4), scale=3).astype(np.float32)
SINGLE = Predictions(LOGITS, RNG.integers(0, 4, 500), LABELS)
MULTI = Predictions(LOGITS, (RNG.random((500, 4)) < 0.3).astype(np.uint8), LABELS, "multi_label")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_losses_and_probabilities_are_torchs(temperature: float) -> None:
    logits = torch.from_numpy(LOGITS).double() / temperature
    every = functional.cross_entropy(logits, torch.from_numpy(SINGLE.targets), reduction="none")
    assert SINGLE.losses(temperature) == pytest.approx(every.numpy(), rel=DOUBLE)
    assert SINGLE.loss(temperature) == pytest.approx(every.mean().item(), rel=DOUBLE)
    assert SINGLE.probabilities(temperature) == pytest.approx(logits.softmax(-1).numpy(), rel=DOUBLE)
    every = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(MULTI.truth).double())
    assert MULTI.loss(temperature) == pytest.approx(every.item(), rel=DOUBLE)
    assert MULTI.probabilities(temperature) == pytest.approx(logits.sigmoid().numpy(), rel=DOUBLE)


def test_large_logits_have_finite_losses() -> None:
    logits = np.float32([[1000, -1000]])
    assert Predictions(logits, np.array([1]), LABELS[:2]).loss() == 2000
    assert Predictions(logits, np.uint8([[0, 1]]), LABELS[:2], "multi_label").loss() == 1000


def test_scores_are_scikit_learns() -> None:
    first = LOGITS.argmax(-1)
    assert SINGLE.accuracy == SINGLE.score == accuracy_score(SINGLE.targets, first)
    assert (SINGLE.confusion == confusion_matrix(SINGLE.targets, first)).all()
    assert MULTI.accuracy == accuracy_score(MULTI.targets, LOGITS > 0)
    expected = average_precision_score(MULTI.targets, LOGITS, average=None)
    assert MULTI.average_precisions == pytest.approx(expected, rel=DOUBLE)
    assert MULTI.mean_ap == MULTI.score == pytest.approx(expected.mean(), rel=DOUBLE)


def test_a_label_that_holds_for_no_clip_has_no_average_precision() -> None:
    targets = MULTI.targets.copy()
    targets[:, 2] = 0
    without = Predictions(LOGITS, targets, LABELS, "multi_label")
    assert np.isnan(without.average_precisions).tolist() == [False, False, True, False]
    assert without.mean_ap == pytest.approx(MULTI.average_precisions[[0, 1, 3]].mean(), rel=DOUBLE)
    assert Predictions(LOGITS, 0 * targets, LABELS, "multi_label").score == 0


@pytest.mark.parametrize("predictions", [SINGLE, MULTI], ids=["single", "multi"])
def test_reliability_is_scikit_learns_calibration_curve(predictions: Predictions) -> None:
    found, said, true = predictions.reliability(2.0), predictions.probabilities(2.0), predictions.truth
    if predictions is SINGLE:
        true, said = SINGLE.targets == said.argmax(-1), said.max(-1)
    accuracy, confidence = calibration_curve(true.ravel(), said.ravel(), n_bins=NUM_BINS)
    filled = found.count > 0
    assert found.count.sum() == said.size
    assert found.accuracy[filled] == pytest.approx(accuracy, rel=DOUBLE)
    assert found.confidence[filled] == pytest.approx(confidence, rel=DOUBLE)
    gaps = np.abs(accuracy - confidence) * found.count[filled] / said.size
    assert found.error == pytest.approx(gaps.sum(), rel=DOUBLE)


def test_calibration_error_by_hand() -> None:
    """Two bins, from 2/5 to 7/15 (for 0.45, right) and from 4/5 to 13/15 (for 0.85, wrong and right)."""
    said = np.array([[0.45, 0.35, 0.2], [0.85, 0.1, 0.05], [0.85, 0.1, 0.05]])
    predictions = Predictions(np.log(said).astype(np.float32), np.array([0, 1, 0]), LABELS[:3])
    assert predictions.reliability().error == pytest.approx((0.55 + 2 * 0.35) / 3, rel=1e-6)


def test_metrics_hold_what_the_task_has() -> None:
    single, multi = SINGLE.metrics("test", 2.0), MULTI.metrics("test", 2.0)
    assert (single.loss, single.calibration_error) == (SINGLE.loss(2.0), SINGLE.reliability(2.0).error)
    assert (single.accuracy, single.mean_ap) == (SINGLE.accuracy, None)
    assert single.confusion == tuple(map(tuple, SINGLE.confusion.tolist()))
    assert (multi.accuracy, multi.mean_ap, multi.confusion) == (MULTI.accuracy, MULTI.mean_ap, None)
    assert (multi.split, multi.num_clips, multi.loss) == ("test", 500, MULTI.loss(2.0))


def test_no_clips_are_no_error() -> None:
    none = Predictions(LOGITS[:0], SINGLE.targets[:0], LABELS)
    assert (none.loss(), none.accuracy, none.reliability().error) == (0, 0, 0)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected logits \[clips, 4\] and multi_label targets \[500, 4\]"):
        Predictions(LOGITS, SINGLE.targets, LABELS, "multi_label")
    with pytest.raises(ValueError, match=r"logits \[clips, 3\] and single_label targets \[500\], got \[500, 4\]"):
        Predictions(LOGITS, SINGLE.targets, LABELS[:3])

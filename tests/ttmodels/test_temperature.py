"""Temperature scaling, on logits that are too sure by a known factor."""

from __future__ import annotations

import numpy as np
import pytest

from ttmodels.predictions import Predictions
from ttmodels.temperature import BOUNDS, MIN_CLIPS, MIN_MISTAKES, fit_temperature, why_not_fitted

LABELS = ("a", "b", "c", "d")


def too_sure(temperature: float, task: str, num_clips: int = 20_000) -> Predictions:
    """Clips whose labels are drawn from the probabilities that logits / temperature give."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(num_clips, 4), scale=2)
    if task == "multi_label":
        true = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
        return Predictions(np.float32(logits * temperature), true, LABELS, "multi_label")
    return Predictions(np.float32(logits * temperature), (logits + rng.gumbel(size=logits.shape)).argmax(-1), LABELS)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_and_calibrates(temperature: float, task: str) -> None:
    predictions = too_sure(temperature, task)
    found = fit_temperature(predictions)
    assert found == pytest.approx(temperature, rel=0.04)  # two of its standard errors on so many clips
    before, after = predictions.reliability().error, predictions.reliability(found).error
    assert after < 0.01
    if temperature != 1:
        assert before > 5 * after
        assert predictions.loss(found) < predictions.loss()
    cooled = Predictions(predictions.logits / np.float32(found), predictions.targets, LABELS, predictions.task)
    assert (cooled.accuracy, cooled.score) == (predictions.accuracy, pytest.approx(predictions.score, abs=1e-4))


def test_the_loss_is_lowest_there() -> None:
    predictions = too_sure(1.7, "single_label", 300)
    found = fit_temperature(predictions)
    every = np.exp(np.linspace(*np.log(BOUNDS), 400))
    assert predictions.loss(found) <= min(map(predictions.loss, every)) + 1e-9


def test_too_few_clips_or_mistakes_leave_it_at_1() -> None:
    predictions = too_sure(3.0, "single_label", 40)
    wrong = predictions.logits.argmax(-1) != predictions.targets
    order = np.argsort(~wrong, kind="stable")  # mistakes first

    def some(rows: np.ndarray) -> Predictions:
        return Predictions(predictions.logits[rows], predictions.targets[rows], LABELS)

    assert wrong.sum() >= MIN_MISTAKES
    assert fit_temperature(some(order[:MIN_CLIPS])) > 1
    assert fit_temperature(some(order[: MIN_CLIPS - 1])) == 1
    few = some(order[wrong.sum() - MIN_MISTAKES + 1 :])
    assert fit_temperature(few) == 1
    expected = f"expected at least {MIN_CLIPS} clips and {MIN_MISTAKES} mistakes, got {len(few)} and 4"
    assert why_not_fitted(few) == expected


def test_logits_that_say_nothing_do_not_leave_the_bounds() -> None:
    rng = np.random.default_rng(2)
    logits = np.float32(100 * rng.normal(size=(200, 4)))
    found = fit_temperature(Predictions(logits, rng.integers(0, 4, 200), LABELS))
    assert BOUNDS[0] < found <= BOUNDS[1]
    assert found == pytest.approx(BOUNDS[1], rel=0.01)

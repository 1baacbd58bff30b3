"""The temperature that makes a model's probabilities mean something: fitted on clips that it was not trained on."""

from __future__ import annotations

import math

from ttmodels.predictions import Predictions

MIN_CLIPS = 20
MIN_MISTAKES = 5
"""Below either a temperature does more harm than good. One that is fitted to no mistake at all goes to 0; on made
logits of 2 and 6 classes whose best temperature was 2, fits to 20 clips with 5 mistakes already gained loss on others,
and where it was 1 cost 0.01 nats."""
BOUNDS = (0.1, 10.0)
"""On a temperature; where a fit ends there, a model's logits say next to nothing."""


def fit_temperature(predictions: Predictions | None) -> float:
    """The T that gives softmax(logits / T), or sigmoid(logits / T), the lowest loss; 1 where there are no clips, or
    too few of them or of mistakes, to tell.

    Reference: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    if predictions is None or why_not_fitted(predictions):
        return 1.0
    low, high = (math.log(bound) for bound in BOUNDS)
    found = minimize_scalar(lambda log_t: predictions.loss(math.exp(log_t)), bounds=(low, high), method="bounded")
    return math.exp(found.x)


def why_not_fitted(predictions: Predictions | None) -> str:
    """What too few clips for a temperature have, and should have; "" where they are enough."""
    if predictions is None:
        return "expected clips that are held back, got none"
    mistakes = round(len(predictions) * (1 - predictions.accuracy))
    if len(predictions) >= MIN_CLIPS and mistakes >= MIN_MISTAKES:
        return ""
    return f"expected at least {MIN_CLIPS} clips and {MIN_MISTAKES} mistakes, got {len(predictions)} and {mistakes}"

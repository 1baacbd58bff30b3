"""What a model said of labelled clips, and how good that is.

Probabilities are those that the service gives: softmax(logits / T), or sigmoid(logits / T) where any number of labels
may hold. T, the temperature, changes how sure a model says it is, and never which label it puts first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from service.manifest import Metrics, Task

SCORES: dict[Task, str] = {"single_label": "accuracy", "multi_label": "mean AP"}
"""What the best epoch has most of, by task."""

NUM_BINS = 15
"""Of confidence, as in Guo et al., figure 4."""


@dataclass(frozen=True)
class Reliability:
    """How often a model is right where it is so sure: three arrays [bins], of the equally wide bins from 0 to 1."""

    confidence: np.ndarray
    """Mean probability that it gave; 0 where a bin is empty."""
    accuracy: np.ndarray
    """Share that was true."""
    count: np.ndarray
    """Probabilities in the bin, int64."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over what was said.

        Reference: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 5.
        """
        return float(np.abs(self.accuracy - self.confidence) @ self.count / max(self.count.sum(), 1))


@dataclass(frozen=True)
class Predictions:
    """Logits beside what is true of the clips."""

    logits: np.ndarray
    """float32 [clips, classes]."""
    targets: np.ndarray
    """int64 [clips]; where several labels may hold uint8 [clips, classes], 1 where one does."""
    labels: tuple[str, ...]
    task: Task = "single_label"

    def __post_init__(self) -> None:
        expected = (len(self.logits),) if self.task == "single_label" else self.logits.shape
        if self.logits.ndim != 2 or self.logits.shape[1] != len(self.labels) or self.targets.shape != expected:
            raise ValueError(
                f"expected logits [clips, {len(self.labels)}] and {self.task} targets {list(expected)}, "
                f"got {list(self.logits.shape)} and {list(self.targets.shape)}"
            )

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def truth(self) -> np.ndarray:
        """bool [clips, classes]."""
        if self.task == "multi_label":
            return self.targets.astype(bool)
        return np.asarray(np.arange(len(self.labels)) == self.targets[:, None])

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """float64 [clips, classes]."""
        return np.asarray(np.exp(self._log_probabilities(temperature)))

    def losses(self, temperature: float = 1.0) -> np.ndarray:
        """Of each clip, in nats, float64 [clips]: cross-entropy; with several labels the labels' mean of it."""
        said = self._log_probabilities(temperature)
        if self.task == "single_label":
            return np.asarray(-said[self.truth])
        against = said - self.logits / np.float64(temperature)  # log(1 - p) = log p - z
        return np.asarray(-np.where(self.truth, said, against).mean(-1))

    def loss(self, temperature: float = 1.0) -> float:
        """Their mean, in nats a clip; 0 where there is no clip."""
        return float(self.losses(temperature).mean()) if len(self) else 0.0

    @property
    def accuracy(self) -> float:
        """Share of clips whose likeliest label is the true one; with several labels, share of clips of which every
        label is told right at the probability 1/2."""
        if self.task == "single_label":
            right = self.logits.argmax(-1) == self.targets
        else:
            right = ((self.logits > 0) == self.truth).all(-1)
        return float(right.mean()) if len(self) else 0.0

    @cached_property
    def average_precisions(self) -> np.ndarray:
        """Of each label, float64 [classes]; nan for one that holds for no clip."""
        from sklearn.metrics import average_precision_score  # slow to import

        scores = self.probabilities() if self.task == "single_label" else self.logits
        pairs = zip(self.truth.T, scores.T, strict=True)
        return np.array([average_precision_score(true, score) if true.any() else np.nan for true, score in pairs])

    @property
    def mean_ap(self) -> float:
        """Mean of the labels' average precision, of those that hold for a clip; 0 where none does."""
        known = self.average_precisions[~np.isnan(self.average_precisions)]
        return float(known.mean()) if len(known) else 0.0

    @property
    def score(self) -> float:
        """As SCORES names it."""
        return self.accuracy if self.task == "single_label" else self.mean_ap

    @property
    def confusion(self) -> np.ndarray:
        """Clips, int64 [true class, class put first]."""
        counts = np.zeros((len(self.labels), len(self.labels)), np.int64)
        np.add.at(counts, (self.targets, self.logits.argmax(-1)), 1)
        return counts

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """Of the probability of each clip's likeliest label; with several labels of every label's."""
        said, true = self.probabilities(temperature), self.truth
        if self.task == "single_label":
            first = self.logits.argmax(-1)[:, None]
            said, true = (np.take_along_axis(array, first, -1) for array in (said, true))
        said, true = said.ravel(), true.ravel()
        bins = np.clip(np.ceil(said * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
        count, sure, right = (np.bincount(bins, of, NUM_BINS) for of in (None, said, true))
        return Reliability(sure / np.maximum(count, 1), right / np.maximum(count, 1), count)

    def metrics(self, split: str, temperature: float = 1.0) -> Metrics:
        """The figures that a model file carries."""
        single = self.task == "single_label"
        return Metrics(
            split=split,
            num_clips=len(self),
            accuracy=self.accuracy,
            mean_ap=None if single else self.mean_ap,
            loss=self.loss(temperature),
            calibration_error=self.reliability(temperature).error,
            confusion=tuple(tuple(row) for row in self.confusion.tolist()) if single else None,
        )

    def _log_probabilities(self, temperature: float) -> np.ndarray:
        z = self.logits / np.float64(temperature)
        others = np.logaddexp.reduce(z, -1, keepdims=True) if self.task == "single_label" else np.logaddexp(0, z)
        return np.asarray(z - others)

"""What training makes small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from ttmodels.classifier import ClipLogits
from ttmodels.config import TrainConfig


@dataclass(frozen=True)
class ClipLoss:
    """The loss of each clip, mixed with that of each step. The later half of the steps counts: before it even a perfect
    observer could not know.

    It is cross-entropy; where several labels may hold, the mean over them of binary cross-entropy.

    Args:
        over_time_weight: share that the steps have.
        label_smoothing: share of what is true that is spread over all labels alike (where several may hold, over
            whether a label does). Reference: Szegedy et al., Rethinking the Inception Architecture for Computer
            Vision, CVPR 2016, section 7.
        class_weights: [classes], by which a clip of a class counts; where several labels may hold, a label that does.
    """

    over_time_weight: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    @classmethod
    def of(cls, config: TrainConfig, targets: np.ndarray, num_classes: int, device: str) -> Self:
        """That of a run whose training clips have these targets."""
        weights = None
        if config.class_weights == "balanced":
            weights = torch.from_numpy(balanced_weights(targets, num_classes)).to(device)
        return cls(config.over_time_weight, config.label_smoothing, weights)

    def __call__(self, out: ClipLogits, targets: Tensor) -> Tensor:
        """Targets int64 [batch] or, where several labels may hold, uint8 [batch, classes] -> [batch]."""
        losses = self._of_labels(out.logits, targets)
        if self.over_time_weight:
            steps = out.logits_over_time[:, out.logits_over_time.shape[1] // 2 :]
            count = steps.shape[1]
            every = self._of_labels(steps.flatten(0, 1), targets.repeat_interleave(count, 0)).unflatten(0, (-1, count))
            losses = (1 - self.over_time_weight) * losses + self.over_time_weight * every.mean(1)
        return losses

    def _of_labels(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[rows, classes] -> [rows]."""
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        weights, smoothing = self.class_weights, self.label_smoothing
        if targets.ndim == 1:
            return nn.functional.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing)
        true = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits, true, pos_weight=weights, reduction="none").mean(
            -1
        )


def balanced_weights(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """float32 [classes]: with them every class counts alike, and a clip 1 in the mean (scikit-learn's "balanced").
    Where several labels may hold, a label counts alike where it does and where it does not.

    Args:
        targets: int64 [clips], or uint8 [clips, classes].
    """
    if targets.ndim == 1:
        counts = np.bincount(targets, minlength=num_classes)
        weights = len(targets) / (num_classes * counts.clip(1))
    else:
        holds = targets.sum(0, dtype=np.int64)
        weights = (len(targets) - holds).clip(1) / holds.clip(1)
    return np.asarray(weights, np.float32)

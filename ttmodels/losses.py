"""What training makes small."""

from __future__ import annotations

import torch
from torch import nn

from ttmodels.classifier import ClipLogits


def clip_loss(out: ClipLogits, targets: torch.Tensor, over_time_weight: float) -> torch.Tensor:
    """The loss of the clip, mixed with that of each step. The later half of the steps counts: before it even a perfect
    observer could not know."""
    loss = label_loss(out.logits, targets)
    if over_time_weight:
        steps = out.logits_over_time[:, out.logits_over_time.shape[1] // 2 :]
        every = label_loss(steps.flatten(0, 1), targets.repeat_interleave(steps.shape[1], 0))
        loss = (1 - over_time_weight) * loss + over_time_weight * every
    return loss


def label_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; where several labels may hold, the mean over them of binary cross-entropy.

    Shape: [batch, classes], and int64 [batch] or uint8 [batch, classes] -> [].
    """
    if targets.ndim == 1:
        return nn.functional.cross_entropy(logits, targets)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

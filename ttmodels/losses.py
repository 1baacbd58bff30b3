"""What training makes small."""

from __future__ import annotations

import torch
from torch import nn

from ttmodels.classifier import ClipLogits


def clip_loss(out: ClipLogits, targets: torch.Tensor, over_time_weight: float) -> torch.Tensor:
    """Cross-entropy of the clip, mixed with that of each step. The later half of the steps counts: before it even a
    perfect observer could not know."""
    loss = nn.functional.cross_entropy(out.logits, targets)
    if over_time_weight:
        steps = out.logits_over_time[:, out.logits_over_time.shape[1] // 2 :]
        every = nn.functional.cross_entropy(steps.flatten(0, 1), targets.repeat_interleave(steps.shape[1]))
        loss = (1 - over_time_weight) * loss + over_time_weight * every
    return loss

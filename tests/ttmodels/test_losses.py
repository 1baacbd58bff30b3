import pytest
import torch

from tests.tolerances import DOUBLE
from ttmodels.classifier import ClipLogits
from ttmodels.losses import clip_loss


def test_clip_loss_mixes_the_later_steps() -> None:
    out = ClipLogits(torch.randn(2, 3), torch.randn(2, 4, 3))
    targets = torch.tensor([0, 2])
    clip = torch.nn.functional.cross_entropy(out.logits, targets)
    steps = torch.stack([torch.nn.functional.cross_entropy(out.logits_over_time[:, t], targets) for t in (2, 3)]).mean()
    assert torch.allclose(clip_loss(out, targets, 0.0), clip)
    assert torch.allclose(clip_loss(out, targets, 0.25), 0.75 * clip + 0.25 * steps)


def test_where_several_labels_may_hold_each_has_a_cross_entropy_of_its_own() -> None:
    """Written out, of the clip and of the later half of its steps."""
    out = ClipLogits(torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64))
    targets = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=torch.uint8)

    def mean(logits: torch.Tensor) -> float:
        says = torch.where(targets.bool(), logits.sigmoid(), 1 - logits.sigmoid())
        return float(-says.log().mean())

    clip = mean(out.logits)
    steps = (mean(out.logits_over_time[:, 2]) + mean(out.logits_over_time[:, 3])) / 2
    assert clip_loss(out, targets, 0.0).item() == pytest.approx(clip, rel=DOUBLE)
    assert clip_loss(out, targets, 0.25).item() == pytest.approx(0.75 * clip + 0.25 * steps, rel=DOUBLE)

import torch

from ttmodels.classifier import ClipLogits
from ttmodels.losses import clip_loss


def test_clip_loss_mixes_the_later_steps() -> None:
    out = ClipLogits(torch.randn(2, 3), torch.randn(2, 4, 3))
    targets = torch.tensor([0, 2])
    clip = torch.nn.functional.cross_entropy(out.logits, targets)
    steps = torch.stack([torch.nn.functional.cross_entropy(out.logits_over_time[:, t], targets) for t in (2, 3)]).mean()
    assert torch.allclose(clip_loss(out, targets, 0.0), clip)
    assert torch.allclose(clip_loss(out, targets, 0.25), 0.75 * clip + 0.25 * steps)

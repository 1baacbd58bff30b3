import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tests.tolerances import DOUBLE
from ttmodels.classifier import ClipLogits
from ttmodels.config import TrainConfig
from ttmodels.losses import ClipLoss, balanced_weights


def made_logits(batch: int = 2) -> ClipLogits:
    return ClipLogits(torch.randn(batch, 3, dtype=torch.float64), torch.randn(batch, 4, 3, dtype=torch.float64))


def test_the_later_steps_have_their_share() -> None:
    out, targets = made_logits(), torch.tensor([0, 2])
    clip = cross_entropy(out.logits, targets)
    steps = torch.stack([cross_entropy(out.logits_over_time[:, t], targets) for t in (2, 3)]).mean()
    torch.testing.assert_close(ClipLoss()(out, targets).mean(), clip)
    torch.testing.assert_close(ClipLoss(over_time_weight=0.25)(out, targets).mean(), 0.75 * clip + 0.25 * steps)


def test_where_several_labels_may_hold_each_has_a_cross_entropy_of_its_own() -> None:
    """Written out, of the clip and of the later half of its steps."""
    out = made_logits()
    targets = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=torch.uint8)

    def mean(logits: torch.Tensor) -> float:
        says = torch.where(targets.bool(), logits.sigmoid(), 1 - logits.sigmoid())
        return float(-says.log().mean())

    clip = mean(out.logits)
    steps = (mean(out.logits_over_time[:, 2]) + mean(out.logits_over_time[:, 3])) / 2
    assert ClipLoss()(out, targets).mean().item() == pytest.approx(clip, rel=DOUBLE)
    mixed = ClipLoss(over_time_weight=0.25)(out, targets).mean().item()
    assert mixed == pytest.approx(0.75 * clip + 0.25 * steps, rel=DOUBLE)


def test_each_clip_has_a_loss_whatever_the_batch() -> None:
    """So that a batch can be shared out: the parts' sums are the whole's; a part may be empty."""
    out, targets = made_logits(5), torch.tensor([0, 2, 2, 1, 0])
    loss = ClipLoss(0.5, 0.1, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    whole = loss(out, targets)
    assert whole.shape == (5,)
    parts = [loss(ClipLogits(*(part[rows] for part in out)), targets[rows]) for rows in ([0, 2], [1, 3, 4], [])]
    torch.testing.assert_close(torch.cat(parts), whole[[0, 2, 1, 3, 4]])


def test_smoothing_spreads_what_is_true() -> None:
    """The cross-entropy to a distribution written out, which weights do not change where each is 1."""
    out, targets = made_logits(), torch.tensor([0, 2])
    spread = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    expected = -(spread * out.logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(ClipLoss(label_smoothing=0.3)(out, targets), expected)
    several = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=torch.uint8)
    expected = binary_cross_entropy_with_logits(out.logits, several.double() * 0.7 + 0.15, reduction="none").mean(-1)
    torch.testing.assert_close(ClipLoss(label_smoothing=0.3)(out, several), expected)


def test_balanced_weights_are_those_of_sklearn() -> None:
    targets = np.array([0, 0, 0, 1, 2, 2, 0])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert balanced_weights(targets, 3) == pytest.approx(expected)
    assert balanced_weights(targets, 3)[targets].mean() == pytest.approx(1)
    assert np.isfinite(balanced_weights(targets, 4)).all()  # a class that is not trained on


def test_with_balanced_weights_the_classes_count_alike() -> None:
    """Of equal logits, the losses of each class sum to the same; so do those where a label holds and where not."""
    flat = ClipLogits(torch.zeros(10, 3), torch.zeros(10, 4, 3))
    classes = np.array([0] * 6 + [1] * 3 + [2])
    config = TrainConfig(class_weights="balanced")
    losses = ClipLoss.of(config, classes, 3, "cpu")(flat, torch.from_numpy(classes))
    sums = [float(losses[torch.from_numpy(classes == target)].sum()) for target in range(3)]
    assert sums == pytest.approx([sums[0]] * 3)

    several = (np.arange(10)[:, None] < [5, 2, 9]).astype(np.uint8)
    weights = torch.from_numpy(balanced_weights(several, 3))
    each = binary_cross_entropy_with_logits(
        flat.logits, torch.from_numpy(several).float(), pos_weight=weights, reduction="none"
    )
    torch.testing.assert_close(ClipLoss.of(config, several, 3, "cpu")(flat, torch.from_numpy(several)), each.mean(-1))
    held = torch.from_numpy(several).bool()
    torch.testing.assert_close((each * held).sum(0), (each * ~held).sum(0))
    assert ClipLoss.of(TrainConfig(), classes, 3, "cpu").class_weights is None


def test_half_precision_is_summed_in_single() -> None:
    out = ClipLogits(*(part.bfloat16() for part in made_logits()))
    assert ClipLoss()(out, torch.tensor([0, 2])).dtype == torch.float32

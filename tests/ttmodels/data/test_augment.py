import numpy as np
import pytest

from ttmodels.data.augment import Augmentation, swapped_labels

LABELS = ("left", "right", "up")


def marked(batch: int) -> np.ndarray:
    """Clips that are bright in their top left corner."""
    frames = np.zeros((batch, 2, 6, 8, 3), np.uint8)
    frames[:, :, 0, 0] = 100
    return frames


def test_mirrors_change_pixels_and_labels_together() -> None:
    augment = Augmentation(swapped_labels(LABELS, "left=right"), swapped_labels(LABELS, ""))
    frames, targets = augment(marked(200), np.zeros(200, np.int64), np.random.default_rng(0))
    places = set()
    for clip, target in zip(frames, targets, strict=True):
        ((line, column),) = {(y, x) for _, y, x, _ in np.argwhere(clip)}
        assert (target == 1) == (column == 7)
        places.add((line, column))
    assert places == {(0, 0), (0, 7), (5, 0), (5, 7)}


def test_a_mirror_swaps_which_of_several_labels_hold() -> None:
    augment = Augmentation(swapped_labels(LABELS, "left=right"))
    held = np.tile(np.array([1, 0, 1], np.uint8), (100, 1))
    frames, targets = augment(marked(100), held, np.random.default_rng(0))
    mirrored = frames[:, 0, 0, 7].any(-1)
    assert 0 < mirrored.sum() < 100
    for of_clip, turned in zip(targets.tolist(), mirrored, strict=True):
        assert of_clip == ([0, 1, 1] if turned else [1, 0, 1])


def test_gain_changes_brightness_clip_by_clip() -> None:
    frames, _ = Augmentation(gain=0.2)(marked(50), np.zeros(50, np.int64), np.random.default_rng(0))
    levels = frames.max((1, 2, 3, 4))
    assert 80 <= levels.min() < 90
    assert 110 < levels.max() <= 120
    assert not frames[:, :, 1:].any()


def test_nothing_is_done_unasked() -> None:
    frames, targets = Augmentation()(marked(20), np.arange(20), np.random.default_rng(0))
    assert np.array_equal(frames, marked(20))
    assert targets.tolist() == list(range(20))


def test_a_label_that_is_not_there_is_refused() -> None:
    assert swapped_labels(LABELS, None) is None
    for pairs in ("left=down", "left", "left=right=up"):
        with pytest.raises(ValueError, match="expected pairs LABEL=LABEL of left, right, up"):
            swapped_labels(LABELS, pairs)

from dataclasses import replace

import numpy as np
import pytest

from ttmodels.config import TrainConfig
from ttmodels.data.augment import Augmentation, sided, swapped_labels

LABELS = ("left", "right", "up")
EVERYTHING = Augmentation(4, np.arange(2), np.arange(2), 0.4, 0.5, 0.3, 0.3, 0.3, 0.5)


def marked() -> np.ndarray:
    """A clip that is bright in its top left corner."""
    clip = np.zeros((2, 6, 8, 3), np.uint8)
    clip[:, 0, 0] = 100
    return clip


def noise(time: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (time, height, width, 3), dtype=np.uint8)


def changed(augment: Augmentation, clip: np.ndarray, count: int, target: int = 0) -> list[tuple[np.ndarray, int]]:
    """What becomes of the clip by so many draws."""
    drawn = (augment(clip, np.int64(target), np.random.default_rng((3, i))) for i in range(count))  # type: ignore[arg-type]
    return [(frames, int(changed_target)) for frames, changed_target in drawn]


def test_mirrors_change_pixels_and_labels_together() -> None:
    augment = Augmentation(2, swapped_labels(LABELS, "left=right"), swapped_labels(LABELS, ""))
    places = []
    for frames, target in changed(augment, marked(), 200):
        ((line, column),) = {(y, x) for _, y, x, _ in np.argwhere(frames)}
        assert (target == 1) == (column == 7)
        places.append((line, column))
    assert all(30 < places.count((line, column)) < 70 for line in (0, 5) for column in (0, 7))


def test_a_mirror_swaps_which_of_several_labels_hold() -> None:
    augment = Augmentation(2, swapped_labels(LABELS, "left=right"))
    turned = 0
    for i in range(100):
        frames, held = augment(marked(), np.array([1, 0, 1], np.uint8), np.random.default_rng(i))
        mirrored = frames[0, 0, 7].any()
        assert held.tolist() == ([0, 1, 1] if mirrored else [1, 0, 1])
        turned += mirrored
    assert 30 < turned < 70


def test_gain_changes_brightness() -> None:
    results = [frames for frames, _ in changed(Augmentation(2, gain=0.2), marked(), 50)]
    levels = [int(frames.max()) for frames in results]
    assert 80 <= min(levels) < 90
    assert 110 < max(levels) <= 120
    assert not any(frames[:, 1:].any() for frames in results)


def test_contrast_is_about_the_clips_mean_and_saturation_about_each_pixels_grey() -> None:
    clip = noise(2) // 2 + 64  # so that nothing is cut off
    grey = (clip @ np.array([0.299, 0.587, 0.114]))[..., None]
    for augment, centre in (
        (Augmentation(2, contrast=0.4), np.full_like(grey, clip.mean())),
        (Augmentation(2, saturation=0.4), grey),
    ):
        away = clip - centre
        factors = []
        for frames, _ in changed(augment, clip, 30):
            factor = float(((frames - centre) * away).sum() / (away**2).sum())
            assert np.abs(frames - centre - factor * away).max() < 0.8  # rounding, in the factor too
            factors.append(factor)
        assert 0.6 < min(factors) < 0.75
        assert 1.25 < max(factors) < 1.4


def test_a_crop_is_one_for_all_frames_and_fills_them() -> None:
    """Of a picture whose red is its column and whose green its row, the crop says what it shows."""
    size = 100
    clip = np.zeros((3, size, size, 3), np.uint8)
    clip[..., 0], clip[..., 1] = np.arange(size), np.arange(size)[:, None]
    shares, places = [], set()
    for frames, _ in changed(Augmentation(3, crop=0.25), clip, 60):
        assert (frames == frames[0]).all()
        columns, rows = frames[0, 0, :, 0].astype(int), frames[0, :, 0, 1].astype(int)
        assert (np.diff(columns) >= 0).all()
        assert (np.diff(rows) >= 0).all()
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert 0.7 < width / height < 1.4
        shares.append(width * height / size**2)
        places.add((columns[0], rows[0]))
    assert 0.24 < min(shares) < 0.35
    assert 0.9 < max(shares) <= 1
    assert len(places) > 40


def test_time_jitter_shows_a_part_of_the_time_in_order() -> None:
    clip = np.zeros((24, 2, 2, 3), np.uint8)
    clip[:] = np.arange(24)[:, None, None, None]
    spans, starts = set(), set()
    for frames, _ in changed(Augmentation(8, time_jitter=0.5), clip, 100):
        times = frames[:, 0, 0, 0].astype(int)
        steps = np.diff(times)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1  # one speed
        assert steps.max() <= 3
        spans.add(np.ptp(times))
        starts.add(times[0])
    assert min(spans) <= 11
    assert max(spans) >= 20
    assert {0, 1, 2, 6} < starts


def test_without_time_jitter_the_frames_are_those_that_serving_sees() -> None:
    """Also where there are others to choose from: the middle ones."""
    clip = noise(12)
    ((frames, _),) = changed(Augmentation(12), clip, 1)
    assert np.array_equal(frames, clip)
    ((frames, _),) = changed(Augmentation(4), clip, 1)
    assert np.array_equal(frames, clip[1::3])


def test_a_box_is_erased_in_all_frames_of_some_clips() -> None:
    clip = noise(4, 40, 60)
    shares = []
    for frames, _ in changed(Augmentation(4, erase=0.5), clip, 200):
        differs = (frames != clip).any((0, 3))
        if not differs.any():
            continue
        rows, columns = (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
        box = frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == box[0, 0, 0]).all()
        shares.append(box.shape[1] * box.shape[2] / differs.size)
    assert 70 < len(shares) < 130
    assert 0.015 < min(shares) < 0.05
    assert 0.15 < max(shares) < 0.21


def test_each_change_has_its_own_draws() -> None:
    """One turned off leaves the others as they were; the clip given is not touched; equal draws make equal clips."""
    clip = noise(12)
    before = clip.copy()
    pairs = list(zip(changed(EVERYTHING, clip, 20), changed(EVERYTHING, clip, 20), strict=True))
    assert all(np.array_equal(one, other) for (one, _), (other, _) in pairs)
    assert len({frames.tobytes() for (frames, _), _ in pairs}) == 20
    assert np.array_equal(clip, before)
    plain = replace(EVERYTHING, gain=0.0, contrast=0.0, saturation=0.0, erase=0.0, time_jitter=0.0, crop=1.0)
    cropped = replace(plain, crop=0.5)
    coloured = replace(cropped, gain=0.3)
    for (whole, _), (part, _), (bright, _) in zip(
        changed(plain, clip, 20), changed(cropped, clip, 20), changed(coloured, clip, 20), strict=True
    ):
        corner = whole[0, 0, 0].astype(int)  # a mirror more or less would show here
        assert part.shape == whole.shape
        assert np.corrcoef(part.ravel(), bright.ravel())[0, 1] > 0.95
        assert any((corner == clip[1, y, x]).all() for y in (0, -1) for x in (0, -1))


def test_nothing_is_done_unasked() -> None:
    for frames, target in changed(Augmentation(2), marked(), 20, target=7):
        assert np.array_equal(frames, marked())
        assert target == 7


def test_a_run_says_what_is_done() -> None:
    config = TrainConfig(crop=0.5, erase=0.25)
    assert str(Augmentation.of(config, 16, ("run", "jump"))) == "mirrored left to right, crop 0.5, erase 0.25"
    assert str(Augmentation.of(TrainConfig(), 16, LABELS)) == "none"
    turned = TrainConfig(mirror_horizontal="left=right", mirror_vertical="", time_jitter=0.2)
    augment = Augmentation.of(turned, 16, LABELS)
    assert str(augment) == "mirrored left to right, mirrored top to bottom, time jitter 0.2"
    assert augment.mirror_horizontal is not None
    assert augment.mirror_horizontal.tolist() == [1, 0, 2]


def test_labels_that_may_name_a_side_forbid_the_mirror_unless_told_otherwise() -> None:
    sides = ("turn left", "TurnRight", "arm_cw", "counter-clockwise", "b", "7", "east_gate")
    assert sided((*sides, "kick", "beast", "a man", "crawl")) == list(sides)
    assert swapped_labels(LABELS, "auto") is None
    for labels, pairs in ((LABELS, ""), (("kick", "punch", "hug"), "auto")):
        swapped = swapped_labels(labels, pairs)
        assert swapped is not None
        assert swapped.tolist() == [0, 1, 2]
    for pairs in (None, "never"):
        assert swapped_labels(("kick", "punch"), pairs) is None


def test_a_label_that_is_not_there_is_refused() -> None:
    for pairs in ("left=down", "left", "left=right=up"):
        with pytest.raises(ValueError, match="expected pairs LABEL=LABEL of left, right, up"):
            swapped_labels(LABELS, pairs)

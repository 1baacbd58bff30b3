from pathlib import Path

import numpy as np
import pytest
import torch

from tests.made import TINY, write_folder
from tests.tolerances import CONTRACTION
from ttmodels.backbone import Backbone
from ttmodels.data.augment import Augmentation
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import DecodedClips
from ttmodels.data.features import FeatureClips

LABELS = ("left", "right", "still")
MIRROR = Augmentation(TINY.num_frames, mirror_horizontal=np.array([1, 0, 2]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), LABELS, 3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone()


def test_features_are_those_of_the_decoded_frames(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    clips = DecodedClips(read_clips(root), TINY, tmp_path)
    data = FeatureClips(clips, backbone, tmp_path, max_bytes=10**8)
    ((frames, targets),) = clips.batches(9)
    ((features, same),) = data.batches(9)
    assert features.shape == (9, 6, 1280)
    assert np.array_equal(same, targets)
    assert np.allclose(features, backbone(torch.from_numpy(frames)).numpy(), rtol=2**-10, atol=1e-4)


def test_a_second_use_computes_nothing(
    root: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = DecodedClips(read_clips(root), TINY, tmp_path)
    first = FeatureClips(clips, backbone, tmp_path, max_bytes=10**8)
    monkeypatch.setattr(Backbone, "forward", None)
    second = FeatureClips(clips, backbone, tmp_path, max_bytes=10**8)
    assert np.array_equal(next(first.batches(9))[0], next(second.batches(9))[0])


def test_views_are_changed_with_their_targets_and_drawn_by_seed_and_row(
    root: Path, backbone: Backbone, tmp_path: Path
) -> None:
    clips = DecodedClips(read_clips(root), TINY, tmp_path, change=MIRROR)
    train = list(range(6))
    data = FeatureClips(clips, backbone, tmp_path, max_bytes=10**8, varied=train, num_views=5, change_name="mirrored")
    assert len(list(tmp_path.iterdir())) == 9 + 6 * 5 + 3
    ((frames, targets),) = clips.take(train).batches(6)
    plain, mirrored = (backbone(torch.from_numpy(f.copy())).numpy() for f in (frames, frames[:, :, :, ::-1]))
    part, seen = data.take(train), set()
    for epoch in range(8):
        order = np.random.default_rng(epoch).permutation(6)
        batches = list(part.varied(np.split(order, 2), (0, epoch)))
        (whole,) = part.varied([order], (0, epoch))
        assert np.array_equal(np.concatenate([features for features, _ in batches]), whole[0])
        for row, one, target in zip(order, *whole, strict=True):
            is_mirrored = bool(target != targets[row])
            assert np.allclose(one, (mirrored if is_mirrored else plain)[row], rtol=2**-10, atol=1e-4)
            seen.add(is_mirrored)
    assert seen == {False, True}
    ((features, same),) = part.batches(6)
    assert np.array_equal(same, targets)
    assert np.allclose(features, plain, rtol=2**-10, atol=1e-4)


def test_statistics_are_those_of_each_channel(root: Path, tmp_path: Path) -> None:
    clips = DecodedClips(read_clips(root), TINY.model_copy(update={"width": 40}), tmp_path)
    data = FeatureClips(clips, Backbone("map"), tmp_path, max_bytes=10**8)
    ((features, _),) = data.batches(9)
    assert features.shape == (9, 6, 2 * 1280)
    by_channel = features.reshape(-1, 1280)
    mean, std = data.statistics()
    assert np.allclose(mean, by_channel.mean(0), atol=CONTRACTION)
    assert np.allclose(std, by_channel.std(0).clip(0.01), atol=CONTRACTION)


def test_without_room_it_is_told(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    clips = DecodedClips(read_clips(root), TINY, tmp_path)
    with pytest.raises(ValueError, match=r"--cache-bytes 100000: expected room for 9 files of features, \d+ bytes"):
        FeatureClips(clips, backbone, tmp_path, max_bytes=100_000)
    assert len(list(tmp_path.iterdir())) == 9


def test_several_labels_are_kept(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    clips = DecodedClips(read_clips(root), TINY, tmp_path)
    clips.clips = clips.clips.take(range(9))
    object.__setattr__(clips.clips, "targets", np.eye(3, dtype=np.uint8)[clips.clips.targets])
    data = FeatureClips(clips, backbone, tmp_path, max_bytes=10**8)
    ((_, targets),) = data.batches(9)
    assert targets.dtype == np.uint8
    assert np.array_equal(targets, clips.clips.targets)

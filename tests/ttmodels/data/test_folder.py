import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.video import decode_clip
from tests.made import TINY, write_folder
from ttmodels.data import folder
from ttmodels.data.folder import DecodedClips, list_clips, split_by_class, unreadable_clips


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right"), 5)


def test_batches_hold_what_the_service_decodes(root: Path, tmp_path: Path) -> None:
    clips = list_clips(root)
    data = DecodedClips(clips, TINY, tmp_path)
    frames, targets = data.batch(np.arange(len(clips)))
    assert targets.tolist() == [0] * 5 + [1] * 5
    for path, pixels in zip(clips.paths, frames, strict=True):
        assert np.array_equal(pixels, decode_clip(path, TINY).frames)


def test_every_clip_comes_once_an_epoch(root: Path, tmp_path: Path) -> None:
    data = DecodedClips(list_clips(root), TINY, tmp_path)
    seen = np.concatenate([targets for _, targets in data.batches(3, np.random.default_rng(0))])
    assert np.bincount(seen).tolist() == [5, 5]
    assert not np.array_equal(seen, np.sort(seen))


def test_a_second_use_decodes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DecodedClips(list_clips(root), TINY, tmp_path)
    monkeypatch.setattr(folder, "ProcessPoolExecutor", None)
    second = DecodedClips(list_clips(root), TINY, tmp_path)
    assert np.array_equal(first.batch(np.arange(10))[0], second.batch(np.arange(10))[0])


def test_unreadable_files_are_listed_and_left_out(root: Path, tmp_path: Path) -> None:
    broken = root / "left" / "broken.mp4"
    broken.write_bytes(b"not a video")
    try:
        data = DecodedClips(list_clips(root), TINY, tmp_path)
    finally:
        broken.unlink()
    assert list(data.unreadable) == [broken]
    assert "expected a video" in data.unreadable[broken]
    assert broken not in data.clips.paths
    assert len(data) == 10
    assert unreadable_clips(data, data)[-1] == "left out 2 of 22 clips that could not be read"


def test_what_a_folder_lacks_and_what_is_left_out_is_said(root: Path) -> None:
    assert list_clips(root).warnings == []
    others = [root / "left" / name for name in ("notes.TXT", "clip.mp5", ".hidden")]
    for path in others:
        path.touch()
    try:
        clips = list_clips(root, ("left", "right", "up", "down"))
    finally:
        for path in others:
            path.unlink()
    suffixes, empty = clips.warnings
    assert suffixes.startswith("left out 2 files by their suffix (.mp5 .txt), ")
    assert empty == "no clips of up, down"
    assert len(clips) == 10


def test_an_interruption_does_not_wait_for_the_clips_that_are_left(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded is kept, and the workers do not hear Ctrl-C."""

    def interrupted(results: Iterator[object], *_: object, **__: object) -> Iterator[object]:
        yield next(results)
        raise KeyboardInterrupt

    stops: list[bool] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, _context: object, *, initializer: object, initargs: object) -> None:
            super().__init__(workers)
            assert (initializer, initargs) == (signal.signal, (signal.SIGINT, signal.SIG_IGN))

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            stops.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "tqdm", interrupted)
        patch.setattr(folder, "ProcessPoolExecutor", Pool)
        with pytest.raises(KeyboardInterrupt):
            DecodedClips(list_clips(root), TINY, tmp_path, num_workers=1)
    assert stops == [True]
    (present,) = tmp_path.glob("*.present")
    assert present.read_bytes() == b"\1" + bytes(9)


def test_splits_do_not_meet(root: Path) -> None:
    clips = list_clips(root)
    train, valid = split_by_class(clips, 0.2, seed=3)
    assert not set(train.paths) & set(valid.paths)
    assert set(train.paths) | set(valid.paths) == set(clips.paths)
    assert np.bincount(valid.targets).tolist() == [1, 1]
    assert split_by_class(clips, 0.2, seed=3)[1].paths == valid.paths


def test_folders_that_do_not_fit_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none at"):
        list_clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least two classes, found"):
        list_clips(tmp_path)
    with pytest.raises(ValueError, match=r"found also \['right'\]"):
        list_clips(root, ("left", "up"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="expected videos"):
        list_clips(tmp_path)

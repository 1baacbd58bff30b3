import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.video import Clip, Sampling, decode_clip
from tests.made import TINY, write_folder
from tests.ttmodels.data.hanging import hang_on_the_third
from ttmodels.data import decoded
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import DecodedClips, unreadable_clips


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), ("left", "right"), 5)


def test_batches_hold_what_the_service_decodes(root: Path, tmp_path: Path) -> None:
    clips = read_clips(root)
    data = DecodedClips(clips, TINY, tmp_path)
    ((frames, targets),) = data.batches(len(clips))
    assert targets.tolist() == [0] * 5 + [1] * 5
    for path, pixels in zip(clips.paths, frames, strict=True):
        assert np.array_equal(pixels, decode_clip(path, TINY).frames)


def test_every_clip_comes_once(root: Path, tmp_path: Path) -> None:
    data = DecodedClips(read_clips(root), TINY, tmp_path)
    batches = list(data.batches(4))
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([targets for _, targets in batches]), data.clips.targets)
    assert not list(data.take([]).batches(4))


@pytest.mark.parametrize(
    "sampling",
    [
        TINY,
        TINY.model_copy(update={"num_frames": 5}),
        TINY.model_copy(update={"policy": "rate", "rate": 7.3}),
        TINY.model_copy(update={"policy": "windows", "window_length": 2, "window_stride": 3}),
    ],
)
def test_among_candidates_are_the_frames_that_serving_sees(sampling: Sampling, root: Path, tmp_path: Path) -> None:
    clips = read_clips(root)
    plain, _ = next(DecodedClips(clips, sampling, tmp_path).batches(10))
    many = DecodedClips(clips, sampling, tmp_path, candidates=3, change=lambda clip, target, _: (clip[-5:], target))
    assert np.array_equal(next(many.batches(10))[0], plain)
    by_time = sampling.policy in ("uniform", "rate")
    assert many.facts == DecodedClips(clips, sampling, tmp_path).facts
    assert len(list(tmp_path.glob("*.clip"))) == (20 if by_time else 10)
    with pytest.raises(ValueError, match="expected an odd number of candidates, got 2"):
        DecodedClips(clips, sampling, tmp_path, candidates=2)


@pytest.mark.parametrize("max_bytes", [decoded.CACHE_BYTES, 1])
def test_what_changes_a_clip_is_drawn_by_the_clip_and_not_by_the_batch(
    max_bytes: int, root: Path, tmp_path: Path
) -> None:
    def change(clip: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        assert len(clip) == 3 * TINY.num_frames
        return clip[: TINY.num_frames] // 2 + rng.integers(0, 100, dtype=np.uint8), 1 - target

    clips = read_clips(root)
    data = DecodedClips(clips, TINY, tmp_path, max_bytes=max_bytes, num_workers=1, candidates=3, change=change)
    ((whole, turned),) = data.varied([np.arange(10)], (4, 0))
    parts = list(data.varied([np.array([8, 2]), np.array([5])], (4, 0)))
    assert np.array_equal(np.concatenate([frames for frames, _ in parts]), whole[[8, 2, 5]])
    assert [targets.tolist() for _, targets in parts] == [[0, 1], [0]]
    assert turned.tolist() == [1] * 5 + [0] * 5
    assert np.array_equal(data.clips.targets, clips.targets)
    ((other, _),) = data.varied([np.arange(10)], (4, 1))
    assert not any(np.array_equal(one, another) for one, another in zip(whole, other, strict=True))


def test_a_second_use_decodes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DecodedClips(read_clips(root), TINY, tmp_path)
    monkeypatch.setattr(decoded, "ProcessPoolExecutor", None)
    second = DecodedClips(read_clips(root), TINY, tmp_path)
    assert np.array_equal(next(first.batches(10))[0], next(second.batches(10))[0])
    assert second.facts == first.facts


def test_unreadable_files_are_listed_and_left_out(root: Path, tmp_path: Path) -> None:
    broken = root / "left" / "broken.mp4"
    broken.write_bytes(b"not a video")
    try:
        data = DecodedClips(read_clips(root), TINY, tmp_path)
    finally:
        broken.unlink()
    assert list(data.unreadable) == [broken]
    assert "expected a video" in data.unreadable[broken]
    assert broken not in data.clips.paths
    assert len(data) == 10
    assert unreadable_clips(data)[-1] == "left out 1 of 11 clips that could not be read"


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
        patch.setattr(decoded, "tqdm", interrupted)
        patch.setattr(decoded, "ProcessPoolExecutor", Pool)
        with pytest.raises(KeyboardInterrupt):
            DecodedClips(read_clips(root), TINY, tmp_path, num_workers=1)
    assert stops == [True]
    assert list(tmp_path.glob("*.clip"))
    size = TINY.num_frames * TINY.height * TINY.width * 3
    assert all(file.suffix == ".clip" and file.stat().st_size > size for file in tmp_path.iterdir())


def test_lists_share_what_was_decoded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fold of the same clips decodes nothing."""
    clips = read_clips(root)
    whole = DecodedClips(clips, TINY, tmp_path)
    monkeypatch.setattr(decoded, "ProcessPoolExecutor", None)
    for indices in ([9, 0, 4], [1, 2]):
        frames, targets = next(DecodedClips(clips.take(indices), TINY, tmp_path).batches(3))
        assert np.array_equal(frames, next(whole.take(indices).batches(3))[0])
        assert np.array_equal(targets, clips.targets[indices])


def test_the_facts_are_those_of_the_video(root: Path, tmp_path: Path) -> None:
    data = DecodedClips(read_clips(root), TINY, tmp_path)
    assert {(f.width, f.height, f.num_frames) for f in data.facts} == {(64, 48, 12)}
    assert all(f.duration_s == pytest.approx(f.num_frames / f.frame_rate, rel=0.1) for f in data.facts)


def test_a_part_keeps_its_place_where_a_clip_cannot_be_read(root: Path, tmp_path: Path) -> None:
    clips = read_clips(root)
    paths = (*clips.paths[:3], root / "left" / "gone.mp4", *clips.paths[4:])
    data = DecodedClips(replace(clips, paths=paths), TINY, tmp_path)
    assert data.unreadable == {paths[3]: "expected a file, found none"}
    part = data.take([2, 3, 4, 9])
    assert part.clips.paths == (paths[2], paths[4], paths[9])
    for path, frames in zip(part.clips.paths, next(part.batches(3))[0], strict=True):
        assert np.array_equal(frames, decode_clip(path, TINY).frames)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_the_cache_keeps_to_its_bound(root: Path, tmp_path: Path) -> None:
    """Clips without room are decoded anew, to the same pixels; clips of others make room, those of this list never."""
    clips = read_clips(root)
    whole = DecodedClips(clips, TINY, tmp_path / "whole")
    bound = 4 * (size_of(tmp_path / "whole") // 10 + 200)
    for indices, num_cached in ((range(10), 4), (range(7, 10), 3), (range(6), 4)):
        data = DecodedClips(clips.take(indices), TINY, tmp_path / "bound", max_bytes=bound, num_workers=1)
        assert data.num_cached == num_cached
        assert size_of(tmp_path / "bound") <= bound
        frames, _ = next(data.batches(10))
        assert np.array_equal(frames, next(whole.take(indices).batches(10))[0])
    assert DecodedClips(clips, TINY, tmp_path / "none", max_bytes=1, num_workers=1).num_cached == 0
    assert not list((tmp_path / "none").iterdir())


def test_a_file_that_another_run_deleted_is_decoded_again(root: Path, tmp_path: Path) -> None:
    data = DecodedClips(read_clips(root), TINY, tmp_path)
    before, _ = next(data.batches(10))
    next(tmp_path.glob("*.clip")).unlink()
    assert np.array_equal(next(data.batches(10))[0], before)


def test_a_clip_that_ends_its_decoder_is_left_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, *_: object, **__: object) -> None:
            super().__init__(workers)

        def map(self, work: Callable[..., object], *columns: object, **_: object) -> Iterator[object]:  # type: ignore[override]
            return map(work, *columns)  # type: ignore[call-overload,no-any-return]

    def decode(path: Path, sampling: Sampling) -> Clip:
        if path.name == "3.mp4":
            raise BrokenProcessPool
        return decode_clip(path, sampling)

    monkeypatch.setattr(decoded, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(decoded, "decode_clip", decode)
    data = DecodedClips(read_clips(root), TINY, tmp_path)
    ends = "the decoder process ended on it, or was ended after 600 s"
    assert data.unreadable == {root / "left" / "3.mp4": ends, root / "right" / "3.mp4": ends}
    assert len(data) == 8


def test_a_decoder_that_hangs_is_ended_and_the_others_go_on() -> None:
    jobs: dict[int, tuple[Path, Path | None]] = {i: (Path(str(i)), None) for i in range(4)}
    said = dict(decoded._decode_all(jobs, hang_on_the_third, 2))
    reason = "the decoder process ended on it, or was ended after 600 s"
    assert said == {i: reason if i == 2 else str(i) for i in range(4)}


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]])
def test_decoders_do_not_import_the_program_that_started_them(how: list[str], tmp_path: Path) -> None:
    """It has torch, which takes longer to import than many clips to decode."""
    lines = [
        "from ttmodels.data import decoded",
        "print('imported', flush=True)",
        "if __name__ == '__main__':",
        "    with decoded._decoders(2) as pool:",
        "        print(*pool.map(int, '12'), flush=True)",
    ]
    (tmp_path / "program.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    done = subprocess.run(
        [sys.executable, *how], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("imported\n1 2\n", "")


def test_what_a_killed_process_left_makes_room(root: Path, tmp_path: Path) -> None:
    """What another run is writing does not."""
    left, writing = tmp_path / ".a.clip.x", tmp_path / ".b.clip.x"
    for file in (left, writing):
        file.write_bytes(bytes(9000))
    os.utime(left, (1, 1))
    clips = read_clips(root)
    size = TINY.num_frames * TINY.height * TINY.width * 3
    assert DecodedClips(clips, TINY, tmp_path, max_bytes=11 * size, num_workers=1).num_cached == 10
    assert not left.exists()
    assert writing.exists()

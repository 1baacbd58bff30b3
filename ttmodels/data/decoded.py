"""Clips decoded once, to files of a cache folder of bounded size.

Clips are read through `service.video`, in processes of their own, so training sees the pixels that serving sees. There
is no torch in this module, so that those processes start fast.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from service.cores import usable_cores
from service.errors import RequestError
from service.video import Sampling, decode_clip
from ttmodels.atomic import in_place_of
from ttmodels.data.clips import ClipList

CACHE_BYTES = 20 << 30
"""How large a cache folder may grow, unless said otherwise."""

Batch = tuple[np.ndarray, np.ndarray]
"""Frames uint8 [batch, time, height, width, 3], and their clips' targets."""

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Candidates uint8 [time * candidates, height, width, 3] and the target of one clip to its frames [time, height, width,
3] and target."""

DECODE_S = 600.0
"""A clip that is not decoded by then hangs its decoder, and is left out."""

_FACTS_BYTES = 256
"""More than a clip's facts take."""
_PART_S = 3600.0
"""After so long a file that was not finished is one that a killed process left."""


@dataclass(frozen=True)
class Facts:
    """What is known of a video beside its pictures."""

    width: int
    height: int
    duration_s: float
    frame_rate: float
    """0 where the file does not say."""
    num_frames: int


class DecodedClips:
    """Clips as uint8 frames [time, height, width, 3], one file each, of which RAM holds a batch.

    A file is there whole or not at all, so an interrupted run goes on where it stopped, and is named by the clip and
    the sampling, so other lists, folds and runs that share the folder use it too. Clips for which `max_bytes` leaves no
    room are decoded anew each time. Files that cannot be read are listed in `unreadable` and left out of `clips`.

    Args:
        candidates: an odd number of frames to decode for each one of a clip, from which a `change` may choose; where
            the sampling's policy is not by time, there is 1.
        change: what `varied` does to a clip.
    """

    def __init__(
        self,
        clips: ClipList,
        sampling: Sampling,
        cache: Path,
        *,
        max_bytes: int = CACHE_BYTES,
        num_workers: int | None = None,
        candidates: int = 1,
        change: Change | None = None,
    ) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self.shape, self._num_workers, self._change = sampling.clip_shape, num_workers, change
        sampling, self._served = _denser(sampling, candidates)
        self._sampling = sampling
        there = [i for i, path in enumerate(clips.paths) if path.is_file()]
        self.unreadable = {path: "expected a file, found none" for path in clips.paths if not path.is_file()}
        clip_bytes = math.prod(sampling.clip_shape) + _FACTS_BYTES
        room = max_bytes // clip_bytes
        names = {i: _name(clips.paths[i], sampling) for i in there}
        files = {i: cache / names[i] if n < room else None for n, i in enumerate(there)}
        wanted = {file for file in files.values() if file}
        make_room(cache, wanted, max_bytes - len(wanted) * clip_bytes)
        facts = {i: known for i, file in files.items() if file and (known := _read_facts(file, sampling))}

        jobs = {i: (clips.paths[i], files[i]) for i in there if i not in facts}
        with closing(_decode_all(jobs, functools.partial(_decode_to, sampling), num_workers)) as results:
            for i, result in tqdm(results, "decoding", len(jobs), unit="clip", disable=None if jobs else True):
                if isinstance(result, Facts):
                    facts[i] = result
                else:
                    self.unreadable[clips.paths[i]] = result
        readable = sorted(facts)
        self.clips = clips.take(readable)
        self.facts = tuple(facts[i] for i in readable)
        self.names = tuple(names[i] for i in readable)
        """Of their files, whether there is room for them or not."""
        self._files = tuple(files[i] for i in readable)
        self._rows = {index: row for row, index in enumerate(readable)}

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def files(self) -> list[Path]:
        """Of the clips for which there was room."""
        return [file for file in self._files if file is not None]

    @property
    def num_cached(self) -> int:
        return len(self.files)

    def rows(self, indices: Sequence[int]) -> list[int]:
        """Where the clips at these places of the list that was given are now, but for those that could not be read."""
        return [self._rows[i] for i in indices if i in self._rows]

    def take(self, indices: Sequence[int]) -> DecodedClips:
        """The clips at these places of the list that was given, but for those that could not be read."""
        rows = self.rows(indices)
        part = copy.copy(self)
        part.clips = self.clips.take(rows)
        part.facts = tuple(self.facts[row] for row in rows)
        part.names = tuple(self.names[row] for row in rows)
        part._files = tuple(self._files[row] for row in rows)
        part._rows = {i: row for row, i in enumerate(i for i in indices if i in self._rows)}
        return part

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Each clip once, in order, its frames those that serving sees."""
        every = np.arange(len(self))
        return self.plain(every[i : i + batch_size] for i in range(0, len(self), batch_size))

    def plain(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The clips of these rows, batch by batch, alike."""
        for rows, clips in self._read(batches):
            frames = np.empty((len(rows), *self.shape), np.uint8)
            for place, clip in enumerate(clips):
                frames[place] = clip[self._served]
            yield frames, self.clips.targets[rows]

    def varied(self, batches: Iterable[np.ndarray], seed: Sequence[int]) -> Iterator[Batch]:
        """The clips of these rows, batch by batch, each changed by what `seed` and its row draw, whatever the batch."""
        assert self._change is not None
        for rows, clips in self._read(batches):
            frames, targets = np.empty((len(rows), *self.shape), np.uint8), self.clips.targets[rows]
            for place, (row, clip) in enumerate(zip(rows, clips, strict=True)):
                rng = np.random.default_rng((*seed, row))
                frames[place], targets[place] = self._change(clip, targets[place], rng)
            yield frames, targets

    def _read(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Iterator[np.ndarray]]]:
        """Rows, and the decoded frames of each."""
        with ExitStack() as stack:
            decoders = functools.cache(lambda: stack.enter_context(_decoders(self._num_workers)))
            for rows in batches:
                yield rows, self._decoded(rows, decoders)

    def _decoded(self, rows: np.ndarray, decoders: Callable[[], Executor]) -> Iterator[np.ndarray]:
        """From the cache; those of a batch that are not there are decoded side by side."""
        cached = [_open_frames(self._files[row], self._sampling) for row in rows]
        absent = [self.clips.paths[row] for row, clip in zip(rows, cached, strict=True) if clip is None]
        anew = decoders().map(functools.partial(_decode, self._sampling), absent) if absent else iter(())
        for clip in cached:
            yield next(anew) if clip is None else clip


def unreadable_clips(data: DecodedClips) -> list[str]:
    """The files that could not be read, a line each, and how many they are."""
    lines = [f"could not read {path}: {reason}" for path, reason in data.unreadable.items()]
    if lines:
        lines.append(f"left out {len(lines)} of {len(data) + len(lines)} clips that could not be read")
    return lines


# ---- the cache


def _name(path: Path, sampling: Sampling) -> str:
    stat = path.stat()
    key = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, sampling.model_dump_json()])
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.clip"


def make_room(cache: Path, wanted: set[Path], spare_bytes: int) -> None:
    """Delete files of a cache folder that are not wanted, those not used for longest first, until they take no more
    than is spare."""
    for file in wanted:
        with suppress(FileNotFoundError):
            os.utime(file)
    others = []
    for file in [*cache.glob("*.clip"), *cache.glob(".*.clip.*")]:
        with suppress(FileNotFoundError):  # another run may share the folder
            stat = file.stat()
            if file not in wanted and (file.suffix == ".clip" or stat.st_mtime < time.time() - _PART_S):
                others.append((file, stat))
    others.sort(key=lambda other: other[1].st_mtime_ns)
    excess = sum(stat.st_size for _, stat in others) - spare_bytes
    for file, stat in others:
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= stat.st_size


def _denser(sampling: Sampling, candidates: int) -> tuple[Sampling, slice]:
    """So many frames for each one, and where that one is among them: the same frame, as both are found exactly."""
    if candidates % 2 == 0:
        raise ValueError(f"expected an odd number of candidates, got {candidates}")
    more: dict[str, float] = {"num_frames": candidates * sampling.num_frames}
    if sampling.policy == "rate":
        assert sampling.rate is not None
        return sampling.model_copy(update=more | {"rate": candidates * sampling.rate}), slice(None, None, candidates)
    if sampling.policy == "uniform":
        return sampling.model_copy(update=more), slice(candidates // 2, None, candidates)
    return sampling, slice(None)


def _open_frames(file: Path | None, sampling: Sampling) -> np.ndarray | None:
    """Mapped, so that only those looked at are read. None where the clip is not in the cache."""
    try:
        return None if file is None else np.memmap(file, np.uint8, "r", shape=sampling.clip_shape)
    except FileNotFoundError:
        return None


def _read_facts(file: Path, sampling: Sampling) -> Facts | None:
    """None where the clip is not in the cache."""
    try:
        with file.open("rb") as opened:
            opened.seek(math.prod(sampling.clip_shape))
            return Facts(**json.loads(opened.read()))
    except FileNotFoundError:
        return None


# ---- the decoder processes


@contextmanager
def _decoders(num_workers: int | None) -> Iterator[Executor]:
    # Ctrl-C reaches every process of a terminal: the workers leave it to this one.
    num_workers = num_workers or usable_cores()
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        with _nameless_main():
            for _ in range(num_workers):
                pool.submit(int)  # starts a process
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the clips that are left


@contextmanager
def _nameless_main() -> Iterator[None]:
    """A new process imports the program that started it, which here would be torch and more, where it can be named."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


Job = tuple[Path, Path | None]


def _decode_all(
    jobs: dict[int, Job], work: Callable[[Path, Path | None], Facts | str], num_workers: int | None
) -> Generator[tuple[int, Facts | str]]:
    """What `work` says of each job. One that ends its process is found by trying those that were next one by one."""
    left = dict(jobs)
    while left:
        try:
            with _decoders(num_workers) as pool:
                for i, result in zip(
                    tuple(left), pool.map(work, *zip(*left.values(), strict=True), chunksize=4), strict=True
                ):
                    del left[i]
                    yield i, result
        except BrokenProcessPool:
            for i in tuple(left)[:16]:
                yield i, _decode_alone(left.pop(i), work)


def _decode_alone(job: Job, work: Callable[[Path, Path | None], Facts | str]) -> Facts | str:
    try:
        with _decoders(1) as pool:
            return pool.submit(work, *job).result()
    except BrokenProcessPool:
        return f"the decoder process ended on it, or was ended after {DECODE_S:g} s"


@contextmanager
def _end_after(seconds: float) -> Iterator[None]:
    """End this process where the block takes longer, wherever it hangs."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _decode(sampling: Sampling, path: Path) -> np.ndarray:
    with _end_after(DECODE_S):
        return decode_clip(path, sampling).frames


def _decode_to(sampling: Sampling, path: Path, file: Path | None) -> Facts | str:
    """Decode one clip, to `file` where there is one: its facts, or the reason where that fails."""
    try:
        with _end_after(DECODE_S):
            clip = decode_clip(path, sampling)
    except RequestError as error:
        return error.detail
    except OSError as error:
        return str(error.strerror)
    info = clip.info
    facts = Facts(info.width, info.height, info.duration_s, info.frame_rate or 0.0, info.num_frames)
    if file is not None:
        with in_place_of(file) as part, part.open("wb") as out:
            clip.frames.tofile(out)
            out.write(json.dumps(asdict(facts)).encode())
    return facts

"""A folder with one sub-folder of videos per class, decoded once to a cache on disk.

Clips are read through `service.video`, in processes of their own, so training sees the pixels that serving sees. There
is no torch in this module, so that those processes start fast.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from service.cores import usable_cores
from service.errors import RequestError
from service.video import Sampling, decode_clip

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .gif .ogv .ogg .wmv .asf .3gp .y4m".split()
)


@dataclass(frozen=True)
class ClipList:
    """Paths and class indices of a folder's clips, in a fixed order."""

    root: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: np.ndarray
    """int64 [clips]."""
    ignored: tuple[Path, ...] = ()
    """Files beside the clips whose suffix is none of a video's."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int] | np.ndarray) -> ClipList:
        return ClipList(self.root, self.labels, tuple(self.paths[i] for i in indices), self.targets[list(indices)])

    @property
    def warnings(self) -> list[str]:
        """What a person may not expect of this folder."""
        found = []
        if self.ignored:
            suffixes = " ".join(sorted({path.suffix.lower() or path.name for path in self.ignored}))
            found.append(
                f"left out {len(self.ignored)} files by their suffix ({suffixes}), {self.ignored[0]} among them; "
                f"videos end in {' '.join(sorted(VIDEO_SUFFIXES))}"
            )
        counts = np.bincount(self.targets, minlength=len(self.labels))
        if empty := [label for label, count in zip(self.labels, counts, strict=True) if not count]:
            found.append(f"no clips of {', '.join(empty)}")
        return found


def list_clips(root: Path, labels: Sequence[str] | None = None) -> ClipList:
    """The videos of ROOT/LABEL/, sorted.

    Args:
        labels: the order of the classes; the sub-folders' names, sorted, without it.

    Raises:
        ValueError: fewer than two classes, a class without a clip, or a folder that is none of `labels`.
    """
    if not root.is_dir():
        raise ValueError(f"expected a folder with one sub-folder per class, found none at {root}")
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = tuple(labels or found)
    if unknown := sorted(set(found) - set(names)):
        raise ValueError(f"{root}: expected sub-folders named {list(names)}, found also {unknown}")
    if len(names) < 2:
        raise ValueError(f"{root}: expected a sub-folder for each of at least two classes, found {found}")
    paths: list[Path] = []
    targets: list[int] = []
    ignored: list[Path] = []
    for target, name in enumerate(names):
        files = sorted(p for p in (root / name).rglob("*") if p.is_file() and not p.name.startswith("."))
        clips = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
        ignored += [p for p in files if p.suffix.lower() not in VIDEO_SUFFIXES]
        if not clips and labels is None:
            raise ValueError(f"{root / name}: expected videos ({' '.join(sorted(VIDEO_SUFFIXES))}), found none")
        paths += clips
        targets += [target] * len(clips)
    if not paths:
        raise ValueError(f"{root}: expected videos, found none")
    return ClipList(root, names, tuple(paths), np.array(targets, np.int64), tuple(ignored))


def split_by_class(clips: ClipList, fraction: float, seed: int) -> tuple[ClipList, ClipList]:
    """The clips without, and with, `fraction` of each class, at least one clip, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for target in range(len(clips.labels)):
        members = np.flatnonzero(clips.targets == target)
        if len(members) < 2:
            raise ValueError(f"{clips.labels[target]}: expected at least two clips to split, found {len(members)}")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held += rng.permutation(members)[:count].tolist()
    kept = sorted(set(range(len(clips))) - set(held))
    return clips.take(kept), clips.take(sorted(held))


class DecodedClips:
    """Clips as uint8 frames [time, height, width, 3] in one memory-mapped file, of which RAM holds what it can.

    A clip is marked as present only after its frames are written, so an interrupted run goes on where it stopped.
    Files that cannot be read are listed in `unreadable` and left out of `clips`.
    """

    def __init__(self, clips: ClipList, sampling: Sampling, cache: Path, num_workers: int | None = None) -> None:
        key = hashlib.sha256(sampling.model_dump_json().encode())
        for path in clips.paths:
            stat = path.stat()
            key.update(json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns]).encode())
        cache.mkdir(parents=True, exist_ok=True)
        stem = cache / key.hexdigest()[:24]
        shape = (len(clips), *sampling.clip_shape)
        self._present = _map(stem.with_suffix(".present"), (len(clips),))
        self._frames = _map(stem.with_suffix(".frames"), shape)
        missing = np.flatnonzero(self._present == 0)
        self.unreadable: dict[Path, str] = {}
        if len(missing):
            work = functools.partial(_decode_into, stem.with_suffix(".frames"), shape, sampling)
            # Ctrl-C reaches every process of a terminal: the workers leave it to this one.
            pool = ProcessPoolExecutor(
                num_workers or usable_cores(),
                multiprocessing.get_context("spawn"),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),
            )
            try:
                results = zip(
                    missing, pool.map(work, missing, [clips.paths[i] for i in missing], chunksize=4), strict=True
                )
                for index, error in tqdm(results, "decoding", len(missing), unit="clip", disable=None):
                    if error is None:
                        self._present[index] = 1
                    else:
                        self.unreadable[clips.paths[index]] = error
            finally:
                pool.shutdown(cancel_futures=True)  # an interruption does not wait for the clips that are left
        self._rows = np.flatnonzero(self._present)
        self.clips = clips.take(self._rows)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [batch, time, height, width, 3] and int64 [batch]."""
        return self._frames[self._rows[indices]], self.clips.targets[indices]

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each clip once, in order, or shuffled by `rng`."""
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])


def unreadable_clips(*data: DecodedClips) -> list[str]:
    """The files that could not be read, a line each, and how many they are."""
    lines = [f"could not read {path}: {reason}" for part in data for path, reason in part.unreadable.items()]
    if lines:
        lines.append(f"left out {len(lines)} of {sum(map(len, data)) + len(lines)} clips that could not be read")
    return lines


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A file of bytes as an array; a new one is sparse and 0."""
    size = int(np.prod(shape))
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.truncate(size)
    return np.memmap(path, np.uint8, "r+", shape=shape)


def _decode_into(frames: Path, shape: tuple[int, ...], sampling: Sampling, index: int, path: Path) -> str | None:
    """Decode one clip into its place; the reason where that fails."""
    out = np.memmap(frames, np.uint8, "r+", shape=shape)
    try:
        decode_clip(path, sampling, out=out[index])
    except RequestError as error:
        return error.detail
    return None

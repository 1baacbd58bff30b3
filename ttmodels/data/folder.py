"""A folder with one sub-folder of videos per class, decoded once to a cache on disk.

Clips are read through `service.video`, in processes of their own, so training sees the pixels that serving sees. There
is no torch in this module, so that those processes start fast.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

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

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int] | np.ndarray) -> ClipList:
        return ClipList(self.root, self.labels, tuple(self.paths[i] for i in indices), self.targets[list(indices)])


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
    for target, name in enumerate(names):
        clips = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
        if not clips and labels is None:
            raise ValueError(f"{root / name}: expected videos ({' '.join(sorted(VIDEO_SUFFIXES))}), found none")
        paths += clips
        targets += [target] * len(clips)
    if not paths:
        raise ValueError(f"{root}: expected videos, found none")
    return ClipList(root, names, tuple(paths), np.array(targets, np.int64))


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
            workers = num_workers or len(os.sched_getaffinity(0))
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                results = pool.map(work, missing, [clips.paths[i] for i in missing], chunksize=4)
                for index, error in tqdm(zip(missing, results, strict=True), "decoding", len(missing), unit="clip"):
                    if error is None:
                        self._present[index] = 1
                    else:
                        self.unreadable[clips.paths[index]] = error
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

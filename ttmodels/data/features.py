"""What a backbone sees in clips, computed once, to files beside the decoded clips: training then runs no backbone."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ttmodels.atomic import in_place_of
from ttmodels.backbone import NUM_CHANNELS, SHA256, Backbone, feature_shape
from ttmodels.data.decoded import Batch, DecodedClips, make_room

_TARGET_BYTES = 4096
"""More than a clip's target takes."""
_LEAST_DEVIATION = 0.01
"""Of features from 0 to 6."""


class FeatureClips:
    """Features of clips, and of changed views of some, as float16 in one file each, of which RAM holds a batch.

    View 0 is the clip as it is. The others are drawn by the number of the view and the place of the clip in the list,
    whatever the seed of a run, so that its folds and seeds share them. A file is there whole or not at all: an
    interrupted run goes on where it stopped.

    Args:
        clips: whose features, and what changes them.
        backbone: computes them, where its weights are.
        cache: a folder, which the decoded clips may share.
        max_bytes: how large it may grow.
        varied: places, in the list that `clips` is of, of those that have more views than one.
        num_views: of these.
        change_name: says how they are changed, so that no other's files are taken for theirs.

    Raises:
        ValueError: `max_bytes` leaves no room for them.
    """

    def __init__(
        self,
        clips: DecodedClips,
        backbone: Backbone,
        cache: Path,
        *,
        max_bytes: int,
        varied: Sequence[int] = (),
        num_views: int = 1,
        change_name: str = "",
    ) -> None:
        self.clips, self._decoded = clips.clips, clips
        num_frames, height, width, _ = clips.shape
        self._shape = (num_frames, math.prod(feature_shape(height, width, backbone.features)))
        several = set(clips.rows(varied))
        about = [SHA256, backbone.features, backbone.difference, list(self.clips.labels), self.clips.targets.dtype.name]
        self._files = [
            [
                cache / _name([name, *about, *([view, change_name] if view else [])])
                for view in range(num_views if row in several else 1)
            ]
            for row, name in enumerate(clips.names)
        ]
        files = {file for views in self._files for file in views}
        _check_room(cache, files, clips.files, 2 * math.prod(self._shape) + _TARGET_BYTES, max_bytes)
        self._compute(backbone)

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, indices: Sequence[int]) -> FeatureClips:
        """The clips at these places of the list, but for those that could not be read."""
        part = copy.copy(self)
        part._decoded = self._decoded.take(indices)
        part.clips = part._decoded.clips
        part._files = [self._files[row] for row in self._decoded.rows(indices)]
        return part

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Each clip once, in order, as it is: features float32 [batch, time, features], and the targets."""
        for start in range(0, len(self), batch_size):
            yield self._read([views[0] for views in self._files[start : start + batch_size]])

    def varied(self, batches: Iterable[np.ndarray], seed: Sequence[int]) -> Iterator[Batch]:
        """The clips of these rows, batch by batch, each in the view drawn by `seed` and its row, whatever the batch."""
        for rows in batches:
            drawn = [np.random.default_rng((*seed, row)).integers(len(self._files[row])) for row in rows]
            yield self._read([self._files[row][view] for row, view in zip(rows, drawn, strict=True)])

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel, over all places and times of the clips as they are; float32
        [channels]. A channel that hardly changes has a deviation of 0.01."""
        total, squares, count = np.zeros(NUM_CHANNELS), np.zeros(NUM_CHANNELS), 0
        for features, _ in self.batches(1):
            values = features.reshape(-1, NUM_CHANNELS).astype(np.float64)
            total, squares, count = total + values.sum(0), squares + (values**2).sum(0), count + len(values)
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, _LEAST_DEVIATION**2))
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()

    def _read(self, files: Sequence[Path]) -> Batch:
        features = np.empty((len(files), *self._shape), np.float32)
        targets = []
        for place, file in enumerate(files):
            with file.open("rb") as opened:
                features[place] = np.fromfile(opened, np.float16, math.prod(self._shape)).reshape(self._shape)
                targets.append(json.loads(opened.read()))
        return features, np.array(targets, self.clips.targets.dtype).reshape(len(files), *self.clips.targets.shape[1:])

    def _compute(self, backbone: Backbone) -> None:
        """What is not there yet."""
        device = backbone.stem.weight.device
        for view in range(max(map(len, self._files), default=0)):
            absent = [i for i, files in enumerate(self._files) if view < len(files) and not files[view].is_file()]
            one_by_one = [np.array([row]) for row in absent]
            read = self._decoded.varied(one_by_one, (view,)) if view else self._decoded.plain(one_by_one)
            title = f"features, view {view}"
            for row, (frames, targets) in zip(absent, tqdm(read, title, len(absent), disable=None), strict=True):
                features = backbone(torch.from_numpy(frames).to(device))
                with in_place_of(self._files[row][view]) as part, part.open("wb") as out:
                    features.cpu().numpy().astype(np.float16).tofile(out)
                    out.write(json.dumps(targets[0].tolist()).encode())


def _check_room(cache: Path, files: set[Path], decoded: Sequence[Path], file_bytes: int, max_bytes: int) -> None:
    """Make room for the files beside those of the decoded clips."""
    taken = sum(file.stat().st_size for file in decoded)
    needed = len(files) * file_bytes
    if needed + taken > max_bytes:
        raise ValueError(
            f"--cache-bytes {max_bytes}: expected room for {len(files)} files of features, {needed} bytes beside the "
            f"{taken} of decoded clips"
        )
    make_room(cache, files | set(decoded), max_bytes - needed - taken)


def _name(about: Sequence[object]) -> str:
    return f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.clip"

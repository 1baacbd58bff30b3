"""Decoded pictures put together to what was asked for: one clip, or the clips of a timeline's windows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from av.video.frame import VideoFrame

from service.video.picture import Resizer
from service.video.sampling import Sampling
from service.video.selection import Selection, select
from service.video.timeline import Timeline
from service.video.windows import Window, Windowing


class Assembly(Protocol):
    """Says which pictures it wants, and takes them."""

    def begin(self, timeline: Timeline) -> Selection:
        """Choose, when it is known which pictures there are."""

    def missing(self) -> list[int]:
        """The pictures, by their index in the timeline, that are wanted from a new beginning; ascending."""

    def take(self, pick: int, tick: int, picture: VideoFrame) -> None:
        """A picture that is wanted, and when it is shown. From a new beginning a picture may come a second time."""


class WholeClip:
    """The frames of one clip, written where they belong."""

    def __init__(self, sampling: Sampling, out: np.ndarray) -> None:
        self.ticks = [0] * sampling.num_frames
        """When each frame is shown."""
        self._sampling, self._out, self._resize = sampling, out, _Resizer(sampling)
        self._places: dict[int, list[int]] = defaultdict(list)

    def begin(self, timeline: Timeline) -> Selection:
        picks = self._sampling.pick(timeline.ticks, timeline.end, timeline.time_base)
        selection = select(timeline, picks, near_keyframes=self._sampling.policy == "keyframes")
        for place, pick in enumerate(selection.picks):
            self._places[pick].append(place)
        return selection

    def missing(self) -> list[int]:
        return sorted(self._places)

    def take(self, pick: int, tick: int, picture: VideoFrame) -> None:
        place, *others = self._places[pick]
        self._resize(picture, self._out[place])
        for other in others:
            self._out[other] = self._out[place]
        for each in (place, *others):
            self.ticks[each] = tick


@dataclass(frozen=True)
class WindowInfo:
    """A window whose clip is complete. Times are seconds from the video's first picture; `pts_s` by its own clock."""

    from_s: float
    to_s: float
    times_s: tuple[float, ...]
    pts_s: tuple[float, ...]


class Windows:
    """The clips of windows, one after the other in the same memory.

    A picture is decoded and resized once, and held until the last window that it is part of was handed over.

    Args:
        out: where each clip is written.
        hand_over: called with each window when its clip is there; the next is written when it returns.
    """

    def __init__(
        self, sampling: Sampling, windowing: Windowing, out: np.ndarray, hand_over: Callable[[WindowInfo], None]
    ) -> None:
        self._sampling, self._windowing, self._out, self._hand_over = sampling, windowing, out, hand_over
        self._resize = _Resizer(sampling)
        self._windows: list[Window] = []
        self._next = 0
        self._uses: Counter[int] = Counter()
        """By picture, how many windows are still to come that it is part of."""
        self._held: dict[int, tuple[int, np.ndarray]] = {}
        self._lacking: set[int] = set()
        """Pictures that the next window still needs."""

    def begin(self, timeline: Timeline) -> Selection:
        self._timeline = timeline
        self._windows = self._windowing.cut(self._sampling, timeline.ticks, timeline.end, timeline.time_base)
        for window in self._windows:
            self._uses.update(set(window.picks))
        self._lacking = set(self._windows[0].picks)
        return select(timeline, sorted(self._uses))

    def missing(self) -> list[int]:
        return sorted(self._uses)

    def take(self, pick: int, tick: int, picture: VideoFrame) -> None:
        if pick not in self._uses:
            return
        pixels = np.empty(self._sampling.clip_shape[1:], np.uint8)
        self._resize(picture, pixels)
        self._held[pick] = tick, pixels
        self._lacking.discard(pick)
        while not self._lacking and self._next < len(self._windows):
            self._complete(self._windows[self._next])

    def _complete(self, window: Window) -> None:
        ticks = []
        for place, pick in enumerate(window.picks):
            tick, self._out[place] = self._held[pick]
            ticks.append(tick)
        first, seconds = self._timeline.ticks[0], self._timeline.seconds
        self._next += 1
        for pick in set(window.picks):
            self._uses[pick] -= 1
            if not self._uses[pick]:
                del self._uses[pick], self._held[pick]
        if self._next < len(self._windows):
            self._lacking = set(self._windows[self._next].picks) - self._held.keys()
        self._hand_over(
            WindowInfo(
                from_s=seconds(window.start - first),
                to_s=seconds(window.end - first),
                times_s=tuple(seconds(tick - first) for tick in ticks),
                pts_s=tuple(map(seconds, ticks)),
            )
        )


class _Resizer:
    """A picture that stands for several, since those cannot be decoded, is resized once."""

    def __init__(self, sampling: Sampling) -> None:
        self._resize = Resizer(sampling)
        self._picture: VideoFrame | None = None
        self._pixels: np.ndarray

    def __call__(self, picture: VideoFrame, out: np.ndarray) -> None:
        if picture is self._picture:
            out[...] = self._pixels
        else:
            self._resize(picture, out)
        self._picture, self._pixels = picture, out

"""A long video cut into windows, each of which a model sees as if it were a clip of its own."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidParameter, TooManyWindows
from service.video.sampling import Sampling

HELD_BYTES = 128 << 20
"""Of pictures, in the form that the model wants, that wait for their windows to be complete."""


@dataclass(frozen=True)
class Window:
    """A part of a video, and its frames: when it begins and ends and they are shown, in ticks, and which they are."""

    start: int
    end: int
    picks: tuple[int, ...]
    """Indices of the video's pictures, ascending."""


class Windowing(BaseModel):
    """How a video is cut.

    The first window begins with the first picture, each further one `stride_s` later, until one reaches the end. That
    one is moved back so that it ends with the video, so all are of one length, that models may be asked about clips of
    the length that they know. A video that is shorter than a window is one window, and gets the answer that it gets as
    a clip.

    A window's clip is what would remain if all before and after it were cut away: the picture on display at its start
    is its first.
    """

    model_config = ConfigDict(frozen=True)

    window_s: Annotated[float, Field(ge=0.01, allow_inf_nan=False)]
    stride_s: Annotated[float, Field(ge=0.01, allow_inf_nan=False)]
    """From the start of a window to that of the next."""
    max_windows: int

    def cut(self, sampling: Sampling, ticks: Sequence[int], end: int, time_base: Fraction) -> list[Window]:
        """The windows of a video, ascending.

        Args:
            sampling: which frames of each.
            ticks: when each picture is shown, ascending, in units of `time_base` seconds.
            end: when the last one ends.

        Raises:
            TooManyWindows: more than `max_windows`.
            InvalidParameter: they overlap so much that more than HELD_BYTES would have to be held.
        """
        length, stride = (Fraction(s).limit_denominator(100_000) / time_base for s in (self.window_s, self.stride_s))
        span = end - ticks[0]
        count = 1 + max(math.ceil((span - length) / stride), 0)
        if count > self.max_windows:
            raise TooManyWindows(
                f"expected at most {self.max_windows} windows, got {count}: {float(span * time_base):.1f} s, one every "
                f"{self.stride_s:g} s"
            )
        last = max(span - length, Fraction(0))
        offsets = (min(i * stride, last) for i in range(count))
        borders = [(math.floor(offset), min(max(math.floor(offset + length), 1), span)) for offset in offsets]
        windows = [_window(sampling, ticks, ticks[0] + start, ticks[0] + stop, time_base) for start, stop in borders]
        held_bytes = _most_held(windows) * sampling.height * sampling.width * 3
        if held_bytes > HELD_BYTES:
            raise InvalidParameter(
                f"stride_s: expected windows that overlap less, got {self.window_s:g} s every {self.stride_s:g} s: "
                f"{held_bytes >> 20} MiB of pictures would wait for their windows, and {HELD_BYTES >> 20} may"
            )
        return windows


def _window(sampling: Sampling, ticks: Sequence[int], start: int, end: int, time_base: Fraction) -> Window:
    first = max(bisect_right(ticks, start) - 1, 0)
    after = max(bisect_left(ticks, end), first + 1)
    shown = [start, *ticks[first + 1 : after]]
    return Window(start, end, tuple(first + pick for pick in sampling.pick(shown, end, time_base)))


def _most_held(windows: Sequence[Window]) -> int:
    """How many pictures at once wait for a window to be complete, or for the next that they are part of."""
    until: dict[int, int] = {}
    for window in windows:
        until.update(dict.fromkeys(window.picks, window.picks[-1]))
    changes = Counter(until.keys())
    changes.subtract(1 + last for last in until.values())
    return max(accumulate(changes[pick] for pick in sorted(changes)))

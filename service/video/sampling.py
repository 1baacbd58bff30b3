"""Which frames of a clip a model looks at, and in what form it wants them.

`Sampling` is the contract between training and serving: it travels in the checkpoint and in the model file, and
`service.video.decode` is its only reader, so both see the same pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PARAMETERS = {"rate": {"rate"}, "windows": {"window_length", "window_stride"}}
"""What a policy needs, and no other may have."""


class Sampling(BaseModel):
    """How a video becomes a uint8 clip of shape [num_frames, height, width, 3].

    Policies, all of them by presentation time:
    - `uniform`: the clip's time span is cut into `num_frames` equal parts, and the frame on display at the middle of
      each is taken. A clip with fewer frames repeats them.
    - `rate`: the frame on display every 1 / `rate` seconds, from the first on.
    - `first`: the first `num_frames` frames.
    - `windows`: `window_length` frames in a row, then as many again `window_stride` frames after the first of these,
      and so on.
    - `keyframes`: as `uniform`, but instead of each frame the keyframe before it. Cheap for long clips, and not exact:
      where a clip has keyframes is its encoder's choice.

    Where a clip ends too early for the policy, its last frame stays on display.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    policy: Literal["uniform", "rate", "first", "windows", "keyframes"] = "uniform"
    """Which frames: evenly spread over the clip's time, at a fixed rate, the first, windows, or near keyframes."""
    num_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    """How many."""
    rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames a second, of the policy `rate`."""
    window_length: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Frames in a window, of the policy `windows`."""
    window_stride: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Frames from the start of a window to that of the next, of the policy `windows`."""
    height: Annotated[int, Field(ge=1, le=4096)] = 120
    """Pixels that the model sees."""
    width: Annotated[int, Field(ge=1, le=4096)] = 160
    """Pixels that the model sees."""
    fit: Literal["stretch"] = "stretch"
    """How another aspect ratio is made to fit."""
    resize_filter: Literal["area", "bilinear", "bicubic"] = "area"
    """How pixels are put together."""
    colour_matrix: Literal["tagged, else bt709 from 720 lines, else bt601"] = (
        "tagged, else bt709 from 720 lines, else bt601"
    )
    """How YUV becomes RGB."""
    colour_range: Literal["tagged, else limited; to full-range rgb24"] = "tagged, else limited; to full-range rgb24"
    """What counts as black and as white."""
    rotation: Literal["applied"] = "applied"
    """Whether a turn or a mirroring that the file asks for is made."""

    @model_validator(mode="after")
    def _policy_has_its_parameters(self) -> Self:
        needed = _PARAMETERS.get(self.policy, set())
        given = {name for names in _PARAMETERS.values() for name in names if getattr(self, name) is not None}
        if given != needed:
            raise ValueError(
                f"policy {self.policy!r}: expected {', '.join(sorted(needed)) or 'no parameters'}, "
                f"got {', '.join(sorted(given)) or 'none'}"
            )
        return self

    def at_keyframes(self) -> Self:
        """As many frames in the same form, but keyframes spread over the clip."""
        others = {name: None for names in _PARAMETERS.values() for name in names}
        return self.model_copy(update={"policy": "keyframes", **others})

    def every(self, num_frames: int) -> Self:
        """Each frame of a clip that has so many, in the same form."""
        others = {name: None for names in _PARAMETERS.values() for name in names}
        return self.model_copy(update={"policy": "first", "num_frames": num_frames, **others})

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """[time, height, width, channel]."""
        return self.num_frames, self.height, self.width, 3

    @property
    def clip_bytes(self) -> int:
        return self.num_frames * self.height * self.width * 3

    def pick(self, ticks: Sequence[int], end: int, time_base: Fraction) -> list[int]:
        """Which frames are taken: num_frames indices of `ticks`, ascending.

        Exact: a time that falls on a frame's own takes that frame, whatever the time base. Ticks are whole, so a time
        may be rounded down to one.

        Args:
            ticks: when each frame of the clip is shown, ascending, in units of `time_base` seconds.
            end: when the last one ends.
        """
        last, count = len(ticks) - 1, self.num_frames
        if self.policy == "first":
            return [min(i, last) for i in range(count)]
        if self.policy == "windows":
            assert self.window_length is not None
            assert self.window_stride is not None
            windows = (divmod(i, self.window_length) for i in range(count))
            return [min(number * self.window_stride + place, last) for number, place in windows]
        if self.policy == "rate":
            assert self.rate is not None
            step = 1 / (Fraction(self.rate).limit_denominator(100_000) * time_base)
            times = [ticks[0] + math.floor(i * step) for i in range(count)]
        else:
            times = [ticks[0] + (2 * i + 1) * (end - ticks[0]) // (2 * count) for i in range(count)]
        return [max(bisect_right(ticks, time) - 1, 0) for time in times]

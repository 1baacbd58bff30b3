"""Which frames of a clip a model looks at, and in what form it wants them.

`Sampling` is the contract between training and serving: it travels in the checkpoint and in the model file, and
`service.video.decode` is its only reader, so both see the same pixels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """How a video becomes a uint8 clip of shape [num_frames, height, width, 3].

    policy `uniform`: the clip's time span is cut into `num_frames` equal parts, and the frame on display at the
    middle of each is taken. A clip with fewer frames repeats them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["uniform"] = "uniform"
    num_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    height: Annotated[int, Field(ge=1, le=4096)] = 120
    width: Annotated[int, Field(ge=1, le=4096)] = 160
    fit: Literal["stretch"] = "stretch"
    resize_filter: Literal["area", "bilinear", "bicubic"] = "area"
    colour_matrix: Literal["tagged, else bt709 from 720 lines, else bt601"] = (
        "tagged, else bt709 from 720 lines, else bt601"
    )
    colour_range: Literal["tagged, else limited; to full-range rgb24"] = "tagged, else limited; to full-range rgb24"
    rotation: Literal["applied"] = "applied"

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """[time, height, width, channel]."""
        return self.num_frames, self.height, self.width, 3

    @property
    def clip_bytes(self) -> int:
        return self.num_frames * self.height * self.width * 3

    def target_ticks(self, first: int, end: int) -> list[Fraction]:
        """Ascending times at which the frame on display is wanted, for a clip shown from tick `first` to tick `end`.

        Exact: a target that falls on a picture's own time takes that picture, whatever the time base.
        """
        return [first + Fraction((2 * i + 1) * (end - first), 2 * self.num_frames) for i in range(self.num_frames)]

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

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    policy: Literal["uniform"] = "uniform"
    """Which frames: evenly spread over the clip's time."""
    num_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    """How many."""
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
    """Whether a turn that the file asks for is made."""

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

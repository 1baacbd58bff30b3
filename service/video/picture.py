"""A decoded picture into the form that a model wants: size, colours, and the way up that its file asks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from service.video.sampling import Sampling

_FILTERS = {
    "area": Interpolation.AREA,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
}
# Exact rounding makes the pixels the same on every processor, whatever vector instructions it has.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
# AVColorSpace of the picture -> coefficients that swscale knows.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}

_UPRIGHT = np.array([1, 0, 0, 0, 1])


class Orientation:
    """How a picture is turned and mirrored for display, by its display matrix, to the next quarter turn.

    The matrix [a b; c d] shows the pixel (x, y) at (a x + c y, b x + d y), up to a shift.
    """

    def __init__(self, picture: VideoFrame) -> None:
        found: Any = picture.side_data
        matrix = np.frombuffer(bytes(found[Type.DISPLAYMATRIX]), np.int32) if Type.DISPLAYMATRIX in found else _UPRIGHT
        a, b, _, c, d = map(int, matrix[:5])
        self.transposed = abs(a) + abs(d) < abs(b) + abs(c)
        """Lines become columns, before the picture is mirrored."""
        self.flipped_x, self.flipped_y = (c < 0, b < 0) if self.transposed else (a < 0, d < 0)

    @property
    def mirrored(self) -> bool:
        return (self.transposed + self.flipped_x + self.flipped_y) % 2 == 1

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise, made after a mirroring from left to right where there is one."""
        # What is on the right at first, and mirrored onto the left where it is, goes to x, y.
        x, y = (0, -1 if self.flipped_y else 1) if self.transposed else (-1 if self.flipped_x else 1, 0)
        if self.mirrored:
            x, y = -x, -y
        return round(math.degrees(math.atan2(-y, x))) % 360

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """A view of pixels [height, width, 3]."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]


class Resizer:
    """One swscale context for a clip: straight to target size and RGB, then turned as the file says."""

    def __init__(self, sampling: Sampling) -> None:
        self.height, self.width = sampling.height, sampling.width
        self.flags = _FILTERS[sampling.resize_filter] | _EXACT
        self.reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame, out: np.ndarray) -> None:
        """Write a picture to `out`, uint8 [height, width, 3]."""
        orientation = Orientation(picture)
        width, height = (self.height, self.width) if orientation.transposed else (self.width, self.height)
        matrix = _MATRICES.get(picture.colorspace, Colorspace.ITU709 if picture.height >= 720 else Colorspace.ITU601)
        full = picture.color_range == ColorRange.JPEG or picture.format.name.startswith("yuvj")
        rgb = self.reformatter.reformat(
            picture,
            width=width,
            height=height,
            format="rgb24",
            interpolation=self.flags,
            src_colorspace=matrix,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        ).planes[0]
        lines = np.frombuffer(memoryview(rgb), np.uint8).reshape(-1, rgb.line_size)[:height, : 3 * width]
        out[...] = orientation.apply(lines.reshape(height, width, 3))

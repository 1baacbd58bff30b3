"""The rule of `service.video` written out plainly: decode every picture, then look which are wanted.

Nothing here comes from the package under test. The test modules compare with it byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np

UPRIGHT = (1, 0, 0, 1)

SWS_AREA, SWS_FULL_CHR_H_INT, SWS_ACCURATE_RND, SWS_BITEXACT = 0x20, 0x2000, 0x40000, 0x80000
"""libswscale's flags: swscale.h."""


@dataclass
class Whole:
    """All pictures of a video, in display order, and the times of all its packets, in ticks of `base` seconds.

    A picture has its packet's time; in a container that knows no presentation times, the n-th has the n-th smallest.
    """

    pictures: list[av.VideoFrame]
    times: list[int]
    packet_times: list[int]
    end: int
    base: Fraction
    matrix: tuple[int, int, int, int]
    """Of the display matrix: a, b, c, d."""

    def shown_at(self, time: Fraction | int) -> int:
        """The index of the picture on display."""
        return max((i for i, own in enumerate(self.times) if own <= time), default=0)

    def uniform(self, count: int) -> list[int]:
        first, span = self.packet_times[0], self.end - self.packet_times[0]
        return [self.shown_at(first + Fraction((2 * i + 1) * span, 2 * count)) for i in range(count)]

    def at_rate(self, rate: Fraction, count: int) -> list[int]:
        return [self.shown_at(self.packet_times[0] + i / rate / self.base) for i in range(count)]

    def packets_at(self, indices: list[int]) -> list[int]:
        """The pictures on display at the times of packets, these counted in display order."""
        last = len(self.packet_times) - 1
        return [self.shown_at(self.packet_times[min(i, last)]) for i in indices]

    def pixels(self, index: int, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3] of a picture, scaled by area and turned for display."""
        picture = self.pictures[index]
        a, b, c, d = self.matrix
        swaps = a == 0
        matrices = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
        limited = picture.color_range != 2 and not picture.format.name.startswith("yuvj")
        rgb = picture.reformat(
            width=height if swaps else width,
            height=width if swaps else height,
            format="rgb24",
            interpolation=SWS_AREA | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT,
            src_colorspace=matrices.get(picture.colorspace, 1 if picture.height >= 720 else 5),
            src_color_range=1 if limited else 2,
            dst_color_range=2,
            threads=1,
        ).to_ndarray()
        y, x = np.indices(rgb.shape[:2])
        to_x, to_y = a * x + c * y, b * x + d * y  # as the matrix says, but for the shift to where both begin at 0
        out = np.empty((height, width, 3), np.uint8)
        out[to_y - to_y.min(), to_x - to_x.min()] = rgb
        return out


def decode_whole(path: Path, matrix: tuple[int, int, int, int] = UPRIGHT) -> Whole:
    """Decode a whole file."""
    durations, packet_times = [], []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        avi = container.format.name == "avi"
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    durations.append(packet.duration)
                    packet_times.append(packet.dts if avi else packet.pts)
        except av.error.FFmpegError:
            pass
        base = stream.time_base
    packet_times.sort()
    pictures: list[av.VideoFrame] = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    break
                try:
                    pictures += packet.decode()
                except av.error.FFmpegError:
                    continue
        except av.error.FFmpegError:
            pass
        pictures += stream.codec_context.decode(None)
    timed = [(packet_times[i] if avi else picture.pts, picture) for i, picture in enumerate(pictures)]
    # What a decoder gives out after a later picture comes too late to be shown.
    timed = [pair for i, pair in enumerate(timed) if all(pair[0] > other[0] for other in timed[:i])]
    times, pictures = [time for time, _ in timed], [picture for _, picture in timed]
    duration = next((d for d in reversed(durations) if d), None)
    if duration is None:
        duration = round((packet_times[-1] - packet_times[0]) / max(len(packet_times) - 1, 1)) or 1
    return Whole(pictures, times, packet_times, packet_times[-1] + duration, base, matrix)

"""A video that is still being made: its pictures as they come, from a pipe that cannot be wound back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TypeVar

import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.errors import UndecodableVideo
from service.video.bounds import Bounds
from service.video.picture import Resizer
from service.video.probe import demux, open_video, reason, video_stream
from service.video.sampling import Sampling
from service.video.timeline import Notes

MAX_GAP_S = 10
"""Between two pictures. Past it the stream's clock was set anew: nothing was on display for so long."""

T = TypeVar("T")


def watch(
    descriptor: int, sampling: Sampling, rate: float | None, out: np.ndarray, bounds: Bounds, notes: Notes
) -> Iterator[float | None]:
    """Decode a stream to its end. Gives a picture's time, in seconds from the first, while `out` holds the picture.

    Args:
        descriptor: a pipe or socket.
        sampling: the form of the pictures.
        rate: pictures a second, each the one on display then, as `Sampling` has it; without it every picture counts.
        out: uint8 [height, width, 3] to write to.
        bounds: how large pictures may be and how many streams; a live video may last.

    Raises:
        PictureTooLarge, TooManyStreams, NotAVideo, NoVideoStream, UndecodableVideo: as `decode_clip`.
    """
    bounds = dataclasses.replace(bounds, max_duration_s=math.inf, max_frames=2**63)
    resize = Resizer(sampling)
    shown: VideoFrame | None = None
    with open_video(descriptor, bounds, live=True) as container:
        stream = video_stream(container, bounds, forgiving=True)  # it may begin in the middle
        pictures = _pictures(container, stream, notes)
        counted = on_display(pictures, Fraction(rate).limit_denominator(100_000), notes) if rate else pictures
        for picture, time_s in counted:
            if picture is not shown:  # at a high rate one is on display several times
                resize(picture, out)
                shown = picture
            yield None if time_s is None else float(time_s)
    if shown is None:
        raise UndecodableVideo("expected pictures, but none could be decoded")


def on_display(
    pictures: Iterator[tuple[T, Fraction | None]], rate: Fraction, notes: Notes
) -> Iterator[tuple[T, Fraction]]:
    """Those that are on display every 1 / `rate` seconds from the first on, as soon as it is known that they are.

    Where the clock jumps, it is counted anew from there. Nothing comes after the last picture.
    """
    held: tuple[T, Fraction] | None = None
    due = Fraction(0)
    for picture, time_s in pictures:
        if time_s is None:
            notes.add("pictures without a time were left out")
            continue
        if held is None or not -MAX_GAP_S <= time_s - held[1] <= MAX_GAP_S:
            if held is not None:
                notes.add("the clock of the stream jumped, and pictures are counted anew from there")
                if due <= held[1]:
                    yield held
            due = time_s
        elif time_s <= held[1]:
            continue
        else:
            while due < time_s:
                yield held
                due += 1 / rate
        held = picture, time_s
    if held is not None and due <= held[1]:
        yield held


def _pictures(
    container: InputContainer, stream: VideoStream, notes: Notes
) -> Iterator[tuple[VideoFrame, Fraction | None]]:
    """Every picture, past packets that are broken, with its time from the first."""
    context, base = stream.codec_context, stream.time_base or Fraction(1)
    try:
        context.open(strict=False)
    except av.error.FFmpegError as error:
        raise UndecodableVideo(f"expected a header that the {context.name} decoder takes: {reason(error)}") from error
    packets = demux(container, stream)
    first: int | None = None
    going = True
    while going:
        packet = None
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            notes.add(f"the stream breaks off: {reason(error)}")
        going = packet is not None
        try:
            for picture in context.decode(packet):
                if picture.pts is not None and first is None:
                    first = picture.pts
                yield picture, None if picture.pts is None or first is None else (picture.pts - first) * base
        except av.error.FFmpegError as error:
            notes.add(f"broken packets were skipped: {reason(error)}")

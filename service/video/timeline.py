"""One pass over a video's packets: when each picture is shown, and what can be told of it before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from service.errors import UndecodableVideo
from service.video.bitstream import BROKEN, Nature, nature_reader
from service.video.bounds import Bounds
from service.video.probe import demux, reason

HELD_BYTES = 8 << 20
"""The packets of a file up to this size stay in memory. Of a larger one, those that are needed are read a second time:
filling fresh memory takes as long as reading."""

_NO_TIME = {"h264", "hevc"}
"""Streams without a container, of which FFmpeg gives out packets without times."""

THREADS_PAY = 500_000
"""Pixels of a picture below which a decoder's threads wait for each other longer than they work: at 320x240 two of them
take a half more of the processor than one, and no less time."""

_NO_PRESENTATION_TIME = {"avi"} | _NO_TIME
"""Containers that store decoding order only: their n-th picture on display carries the n-th smallest time stamp."""

_USUAL_RATE = Fraction(25)
"""Of a stream that says none; the one that FFmpeg and players take."""

_STATE_IN_PACKETS = ("new_extradata", "palette", "param_change")
"""Side data of a packet that the decoder remembers."""


@dataclass
class Notes:
    """What went otherwise than a player would expect."""

    warnings: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


@dataclass(frozen=True)
class Timeline:
    """A stream's packets, numbered in decoding order, and its pictures in the order in which they are shown."""

    ticks: list[int]
    """When each picture is shown, ascending, in units of `time_base` seconds."""
    end: int
    """When the last picture ends."""
    time_base: Fraction
    rate: Fraction | None
    """Pictures a second, as the file says."""
    stored: bool
    """Whether the container stores presentation times, so that a picture's own may be trusted."""
    numbers: list[int]
    """The packet of each of `ticks`; empty where there is a `doubt`."""
    times: list[int | None]
    """Of each packet."""
    dts: list[int | None]
    """Of each packet."""
    places: list[tuple[int | None, int]]
    """Of each packet, where in the file it begins, and its size."""
    natures: list[Nature]
    """Of each packet."""
    held: list[Packet] | None
    """Each packet, where the file is not larger than HELD_BYTES."""
    doubt: str
    """Why it cannot be told which packets a picture needs; empty where it can."""

    def seconds(self, tick: int) -> float:
        return tick * self.time_base.numerator / self.time_base.denominator


def read_timeline(container: InputContainer, stream: VideoStream, bounds: Bounds, notes: Notes) -> Timeline:
    """Read all packets: headers lie about counts and durations. A decoder of small pictures is left one thread.

    Raises:
        UndecodableVideo: no packet has a time.
        TooManyFrames, VideoTooLong: there is more than `bounds` allow.
    """
    nature_of = nature_reader(stream)
    pts: list[int | None] = []
    dts: list[int | None] = []
    places: list[tuple[int | None, int]] = []
    natures: list[Nature] = []
    held: list[Packet] | None = [] if 0 <= container.size <= HELD_BYTES else None
    discarded: set[int] = set()
    last_duration = 0
    doubt = ""
    try:
        for packet in demux(container, stream):
            if packet.is_discard:
                discarded.add(len(natures))
            pts.append(packet.pts)
            dts.append(packet.dts)
            places.append((packet.pos, packet.size))
            natures.append(BROKEN if packet.is_corrupt else nature_of(packet))
            bounds.check_count(len(natures))
            if packet.duration:
                last_duration = packet.duration
            for data in packet.iter_sidedata():
                if data.data_type in _STATE_IN_PACKETS and len(natures) > 1:
                    doubt = "parameters change on the way"
            if held is not None:
                held.append(packet)
    except av.error.FFmpegError as error:
        notes.add(f"the file breaks off: {reason(error)}")
    else:
        if natures and natures[-1].broken:
            notes.add("the file breaks off in the middle of a picture")
    base, rate = stream.time_base or Fraction(1, 25), stream.average_rate
    if container.format.name in _NO_TIME:
        rate = stream.codec_context.framerate
        if not rate:
            rate = _USUAL_RATE
            notes.add(f"the stream does not say its frame rate; {rate} a second is assumed")
        dts = [int(i / rate / base) for i in range(len(natures))]
    stored = container.format.name not in _NO_PRESENTATION_TIME and pts.count(None) <= dts.count(None)
    times = pts if stored else dts
    shown = [i for i, nature in enumerate(natures) if not nature.hidden and i not in discarded]
    timed = [(time, i) for i in shown if (time := times[i]) is not None]
    if not timed:
        raise UndecodableVideo("expected packets with time stamps in the video stream, found none")
    timed.sort()
    ticks = [time for time, _ in timed]
    bounds.check_span((ticks[-1] - ticks[0]) * base)
    if not last_duration:
        last_duration = round((ticks[-1] - ticks[0]) / (len(ticks) - 1)) if len(ticks) > 1 else 0
    if stream.frames and abs(stream.frames - len(natures)) > 1:
        notes.add(f"the header counts {stream.frames} frames, the stream holds {len(natures)}")
    if _varies(ticks):
        notes.add("the frame rate varies")
    if stream.width * stream.height < THREADS_PAY:
        stream.codec_context.thread_count = 1
    doubt = doubt or next((nature.doubt for nature in natures if nature.doubt), "")
    if not doubt and len(timed) < len(shown):
        doubt = "pictures without a time"
    numbers = [number for _, number in timed]
    if not stored and not all(natures[number].reference for number in numbers):
        doubt = doubt or "pictures out of order without their times"
    doubt = doubt or _doubt(stream, numbers, ticks, stored)
    return Timeline(
        ticks,
        ticks[-1] + max(last_duration, 1),
        base,
        rate,
        stored,
        [] if doubt else numbers,
        times,
        dts,
        places,
        natures,
        held,
        doubt,
    )


def _doubt(stream: VideoStream, numbers: list[int], ticks: list[int], stored: bool) -> str:
    """Why the packets' times may not be those of the pictures that come of them; empty where they are."""
    context = stream.codec_context
    try:
        context.open(strict=False)  # so that the stream's header tells it how far pictures are out of order
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return "a header that the decoder takes only where it forgives errors"
    if len(set(ticks)) < len(ticks):
        return "two pictures at one time"
    # How many pictures at most are decoded before one that is shown before them.
    delay = int((np.arange(len(numbers)) - np.argsort(numbers)).max(initial=0)) if stored else 0
    if not stored and context.reorder_depth:
        return "pictures out of order without their times"
    if context.codec.canonical_name == "h264":
        if context.field_order > 1:
            return "a packet may be half a picture"
        if delay > context.reorder_depth:
            return "more pictures out of order than the decoder expects"
    return ""


def _varies(ticks: list[int]) -> bool:
    """Whether pictures follow each other at intervals that differ by more than rounding and a quarter."""
    if len(ticks) < 3:
        return False
    steps = np.diff(np.asarray(ticks[:-1] if len(ticks) > 3 else ticks, np.int64))
    return bool(steps.max() - steps.min() > max(2, 0.25 * float(np.median(steps))))

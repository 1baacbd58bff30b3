"""A stream's packets, one after the other or by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from service.video.probe import demux
from service.video.timeline import Timeline

Fetch = Callable[[int, bool], Packet]
"""The packet of a number. Numbers come ascending; with the first of a run, True: the decoder holds nothing yet."""

_SEEKABLE = {"mov", "matroska", "webm"}
"""Demuxers with an index, which find a packet faster than by reading all before it."""

_FAR = 100
"""Packets that are sooner read than sought."""


class UnforeseenError(Exception):
    """A packet is not where it was before, or does not give the picture that was expected of it."""


def in_order(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Every packet that holds something, as far as the file can be read."""
    packets = demux(container, stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):  # the timeline has noted it
            return
        yield packet


def by_number(container: InputContainer, stream: VideoStream, timeline: Timeline) -> Fetch:
    """How to get at single packets of a stream that was opened again.

    What comes after a seek must be known by its place in the file: else it is an UnforeseenError.
    """
    packets = in_order(container, stream)
    numbers: dict[tuple[int | None, int], int] = {}
    if _SEEKABLE & set(container.format.name.split(",")):
        numbers = {place: number for number, place in enumerate(timeline.places)}
    last = -1

    def fetch(wanted: int, begins: bool) -> Packet:
        nonlocal last
        # Seeking empties the decoder.
        sought = begins and bool(numbers) and wanted - last > _FAR and timeline.dts[wanted] is not None
        if sought:
            container.seek(timeline.dts[wanted] or 0, stream=stream)
        for packet in packets:
            last = numbers.get((packet.pos, packet.size), wanted + 1) if sought else last + 1
            sought = False
            if last == wanted:
                return packet
            if last > wanted:
                break
        raise UnforeseenError

    return fetch

"""A video in, the frames that a model wants out: one pass over the packets, then a decoder for those that are needed.

Memory is bounded by the clip asked for and by HELD_BYTES: of the decoded pictures only the last one is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av.error
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from service.errors import NotAVideo, UndecodableVideo
from service.video.bounds import UNBOUNDED, Bounds
from service.video.device import CODECS, FORMATS, Accelerator
from service.video.packets import Fetch, UnforeseenError, by_number, in_order
from service.video.picture import Orientation, Resizer
from service.video.probe import open_video, reason, video_stream
from service.video.sampling import Sampling
from service.video.selection import Run, Selection, select
from service.video.timeline import Notes, Timeline, read_timeline


@dataclass(frozen=True)
class ClipInfo:
    """Facts about the video a clip came from. Times are seconds from its first picture."""

    container: str
    codec: str
    width: int
    """As shown, rotation applied."""
    height: int
    duration_s: float
    frame_rate: float | None
    num_frames: int
    """Pictures in the stream, counted, not believed."""
    rotation: int
    """Degrees counter-clockwise that were applied."""
    mirrored: bool
    """Whether left and right were exchanged before that."""
    times_s: tuple[float, ...]
    """When each frame of the clip is shown."""
    pts_s: tuple[float, ...]
    """The same, by the file's own clock."""
    exact: bool
    """Whether each frame is the one that the sampling's rule names, bit for bit as if all pictures had been decoded."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """frames: uint8 [time, height, width, 3], full-range RGB."""

    frames: np.ndarray
    info: ClipInfo


def decode_clip(
    source: Path | int,
    sampling: Sampling,
    out: np.ndarray | None = None,
    bounds: Bounds = UNBOUNDED,
    threads: int = 1,
    accelerator: Accelerator | None = None,
) -> Clip:
    """Decode the frames of a video file that `sampling` asks for.

    Args:
        source: a local file, whose name plays no part in how it is read, or the descriptor of one that is open.
        sampling: which frames, and their form.
        out: uint8 [time, height, width, 3] to write to; a new array without it.
        bounds: how large the video may be.
        threads: of the decoder. One is best where other clips wait; all cores speed up a large video alone, where not
            all of it must be decoded.
        accelerator: a GPU to decode what it can; what it cannot comes from the CPU, with a warning.

    Raises:
        PictureTooLarge, VideoTooLong, TooManyFrames, TooManyStreams: it is larger than `bounds`.
        NotAVideo: no known container, or none that may be opened.
        NoVideoStream: a container without pictures.
        UndecodableVideo: not one picture could be decoded.
    """
    frames = np.empty(sampling.clip_shape, np.uint8) if out is None else out
    notes = Notes()
    taken: _Taken | None = None
    with open_video(source, bounds) as container:
        stream = video_stream(container, bounds, threads=threads)
        timeline = read_timeline(container, stream, bounds, notes)
        selection = select(timeline, sampling)
        take = _Taker(timeline, selection, Resizer(sampling), frames, notes)
        held = timeline.held
        container_name, codec = container.format.name.split(",")[0], stream.codec_context.codec.canonical_name
        if accelerator is None and held is not None and selection.runs:
            taken = take.selected(stream.codec_context, lambda number, _: held[number])
    if accelerator is not None:
        taken = _by_device(accelerator, source, bounds, codec, take)
    if taken is None and selection.runs and (held is None or accelerator is not None):
        with open_video(source, bounds) as container:
            stream = video_stream(container, bounds, threads=threads)
            taken = take.selected(stream.codec_context, by_number(container, stream, timeline))
    if taken is None:
        with open_video(source, bounds) as container:
            # One thread: several lose more pictures than the one that is broken.
            stream = video_stream(container, bounds, forgiving=True)
            taken = take.all(stream.codec_context, in_order(container, stream))
    if taken is None:
        raise UndecodableVideo(f"expected pictures, but none of {len(timeline.ticks)} {codec} packets could be decoded")
    orientation, width, height = taken.orientation, taken.width, taken.height
    if orientation.transposed:
        width, height = height, width
    if orientation.rotation or orientation.mirrored:
        mirrored = "mirrored and " if orientation.mirrored else ""
        notes.add(
            f"the file asks for its pictures to be {mirrored}turned by {orientation.rotation} degrees, as they were"
        )
    first = timeline.ticks[0]
    info = ClipInfo(
        container=container_name,
        codec=codec,
        width=width,
        height=height,
        duration_s=timeline.seconds(timeline.end - first),
        frame_rate=float(timeline.rate) if timeline.rate else None,
        num_frames=len(timeline.ticks),
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        times_s=tuple(timeline.seconds(tick - first) for tick in taken.ticks),
        pts_s=tuple(timeline.seconds(tick) for tick in taken.ticks),
        exact=selection.exact,
        warnings=tuple(notes.warnings),
    )
    return Clip(frames, info)


def _by_device(accelerator: Accelerator, source: Path | int, bounds: Bounds, codec: str, take: _Taker) -> _Taken | None:
    """What a GPU decodes; None where it cannot, and a note why."""
    taken, timeline = None, take.timeline
    if codec not in CODECS:
        take.notes.add(f"decoded by the CPU: of {codec} a GPU's pictures may differ, or it has no decoder")
    elif not take.selection.runs:
        why = timeline.doubt or "it is broken, or begins in the middle"
        take.notes.add(f"decoded by the CPU, from the first picture on: {why}")
    else:
        try:
            with open_video(source, bounds, accelerator.settings) as container:
                stream = video_stream(container, bounds)
                taken = take.selected(stream.codec_context, by_number(container, stream, timeline), FORMATS)
        except (NotAVideo, MemoryError, RuntimeError):
            pass  # the file was opened before, so it is the GPU that was not
        if taken is None:
            take.notes.add(f"decoded by the CPU: the GPU did not take this {codec} stream")
    return taken


@dataclass(frozen=True)
class _Taken:
    """Of a clip that is complete: when its frames are shown, and how its first picture looks."""

    ticks: list[int]
    orientation: Orientation
    width: int
    height: int


class _Taker:
    """Two ways from packets to the frames of a clip, which come to the same."""

    def __init__(
        self, timeline: Timeline, selection: Selection, resize: Resizer, frames: np.ndarray, notes: Notes
    ) -> None:
        self.timeline, self.selection, self.resize, self.frames, self.notes = timeline, selection, resize, frames, notes
        self.ticks = [timeline.ticks[pick] for pick in selection.picks]

    def selected(self, context: VideoCodecContext, fetch: Fetch, formats: Collection[str] = ()) -> _Taken | None:
        """Decode only what is needed; None where that does not go as it should, so that nothing may be left out.

        Args:
            formats: of pictures; without them any will do.
        """
        first: VideoFrame | None = None
        try:
            for number, picture in _decode_runs(context, fetch, self.selection.runs):
                if formats and picture.format.name not in formats:
                    return None
                place, *others = self.selection.places[number]
                self.resize(picture, self.frames[place])
                for other in others:
                    self.frames[other] = self.frames[place]
                first = first or picture
        except (UnforeseenError, av.error.FFmpegError):
            return None
        assert first is not None
        return _Taken(self.ticks, Orientation(first), first.width, first.height)

    def all(self, context: VideoCodecContext, packets: Iterable[Packet]) -> _Taken | None:
        """Decode from the first packet on until all is there; None where not one picture comes."""
        try:
            context.open(strict=False)
        except av.error.FFmpegError as error:
            raise UndecodableVideo(
                f"expected a header that the {context.name} decoder takes: {reason(error)}"
            ) from error
        ticks: list[int] = []
        first: VideoFrame | None = None
        for picture, tick, shown_until in self._shown(context, packets):
            first = first or picture
            while len(ticks) < len(self.ticks) and (shown_until is None or self.ticks[len(ticks)] < shown_until):
                place = len(ticks)
                if place and ticks[-1] == tick:
                    self.frames[place] = self.frames[place - 1]
                else:
                    self.resize(picture, self.frames[place])
                ticks.append(tick)
            if len(ticks) == len(self.ticks):
                return _Taken(ticks, Orientation(first), first.width, first.height)
        return None

    def _shown(
        self, context: VideoCodecContext, packets: Iterable[Packet]
    ) -> Iterator[tuple[VideoFrame, int, int | None]]:
        """Pictures in display order, each with its time and the time of the next; the last is shown for ever."""
        held: tuple[VideoFrame, int] | None = None
        for number, picture in enumerate(self._pictures(context, packets)):
            if self.timeline.stored and picture.pts is not None:
                tick = picture.pts
            else:
                tick = self.timeline.ticks[min(number, len(self.timeline.ticks) - 1)]
            if held is not None:
                if tick <= held[1]:
                    continue
                yield held[0], held[1], tick
            held = picture, tick
        if held is not None:
            yield held[0], held[1], None

    def _pictures(self, context: VideoCodecContext, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
        """Decode to the end, past packets that are broken."""
        for packet in chain(packets, [None]):
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError as error:
                self.notes.add(f"broken packets were skipped: {reason(error)}")


def _decode_runs(context: VideoCodecContext, fetch: Fetch, runs: Iterable[Run]) -> Iterator[tuple[int, VideoFrame]]:
    """The pictures that are wanted, each with its packet's number.

    A decoder hands a packet's time on to its picture, so the packet's number goes there.
    """
    for run in runs:
        missing = set(run.wanted)
        for number in chain(run.packets, [None]):
            packet = None
            if number is not None:
                packet = fetch(number, number == run.packets[0])
                packet.pts = number
            elif not missing:
                break
            for picture in context.decode(packet):
                if picture.pts in missing:
                    if picture.is_corrupt or (picture.interlaced_frame and context.name == "h264"):
                        raise UnforeseenError  # of interlaced H.264, a packet may be half a picture
                    missing.remove(picture.pts)
                    yield picture.pts, picture
        if missing:
            raise UnforeseenError
        context.flush_buffers()

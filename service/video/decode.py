"""A video in, the frames that a model wants out: one pass over the packets, then a decoder for those that are needed.

Memory is bounded by the clip asked for and by HELD_BYTES: of the decoded pictures only the last one is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import av.error
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from service.errors import NotAVideo, UndecodableVideo
from service.video.assembly import Assembly, WholeClip, WindowInfo, Windows
from service.video.bounds import UNBOUNDED, Bounds
from service.video.device import CODECS, FORMATS, Accelerator
from service.video.packets import Fetch, UnforeseenError, by_number, in_order
from service.video.picture import Orientation
from service.video.probe import open_video, reason, video_stream
from service.video.sampling import Sampling
from service.video.selection import Run, Selection
from service.video.timeline import Notes, Timeline, read_timeline
from service.video.windows import Windowing


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
        threads: of the decoder. One is best where other clips wait; all cores speed up a video of large pictures alone,
            where not all of it must be decoded.
        accelerator: a GPU to decode what it can; what it cannot comes from the CPU, with a warning.

    Raises:
        PictureTooLarge, VideoTooLong, TooManyFrames, TooManyStreams: it is larger than `bounds`.
        NotAVideo: no known container, or none that may be opened.
        NoVideoStream: a container without pictures.
        UndecodableVideo: not one picture could be decoded.
    """
    frames = np.empty(sampling.clip_shape, np.uint8) if out is None else out
    clip = WholeClip(sampling, frames)
    info, timeline = _decode(source, clip, bounds, threads, accelerator)
    first = timeline.ticks[0]
    times_s = tuple(timeline.seconds(tick - first) for tick in clip.ticks)
    return Clip(frames, replace(info, times_s=times_s, pts_s=tuple(map(timeline.seconds, clip.ticks))))


def decode_windows(
    source: Path | int,
    sampling: Sampling,
    windowing: Windowing,
    hand_over: Callable[[WindowInfo], None],
    out: np.ndarray,
    bounds: Bounds = UNBOUNDED,
    threads: int = 1,
    accelerator: Accelerator | None = None,
) -> ClipInfo:
    """Decode the frames that `sampling` asks for of every window of a video file, each picture once.

    Args:
        windowing: how the video is cut.
        hand_over: called with each window, in their order, when its clip is in `out`.
        out: uint8 [time, height, width, 3], of one window's clip after the other.

    Returns:
        Facts about the whole video; the times of its frames are the windows' own.

    Raises:
        TooManyWindows, InvalidParameter: from `windowing`.
        RequestError: as `decode_clip`.
    """
    windows = Windows(sampling, windowing, out, hand_over)
    return _decode(source, windows, bounds, threads, accelerator)[0]


def _decode(
    source: Path | int, assembly: Assembly, bounds: Bounds, threads: int, accelerator: Accelerator | None
) -> tuple[ClipInfo, Timeline]:
    notes = Notes()
    looks: _Looks | None = None
    with open_video(source, bounds) as container:
        stream = video_stream(container, bounds, threads=threads)
        timeline = read_timeline(container, stream, bounds, notes)
        selection = assembly.begin(timeline)
        take = _Taker(timeline, selection, assembly, notes)
        held = timeline.held
        container_name, codec = container.format.name.split(",")[0], stream.codec_context.codec.canonical_name
        if accelerator is None and held is not None and selection.runs:
            looks = take.selected(stream.codec_context, lambda number, _: held[number])
    if accelerator is not None:
        looks = _by_device(accelerator, source, bounds, codec, take)
    if looks is None and selection.runs and (held is None or accelerator is not None):
        with open_video(source, bounds) as container:
            stream = video_stream(container, bounds, threads=threads)
            looks = take.selected(stream.codec_context, by_number(container, stream, timeline))
    if looks is None:
        with open_video(source, bounds) as container:
            # One thread: several lose more pictures than the one that is broken.
            stream = video_stream(container, bounds, forgiving=True)
            looks = take.all(stream.codec_context, in_order(container, stream))
    if looks is None:
        raise UndecodableVideo(f"expected pictures, but none of {len(timeline.ticks)} {codec} packets could be decoded")
    orientation, width, height = looks.orientation, looks.width, looks.height
    if orientation.transposed:
        width, height = height, width
    if orientation.rotation or orientation.mirrored:
        mirrored = "mirrored and " if orientation.mirrored else ""
        notes.add(
            f"the file asks for its pictures to be {mirrored}turned by {orientation.rotation} degrees, as they were"
        )
    info = ClipInfo(
        container=container_name,
        codec=codec,
        width=width,
        height=height,
        duration_s=timeline.seconds(timeline.end - timeline.ticks[0]),
        frame_rate=float(timeline.rate) if timeline.rate else None,
        num_frames=len(timeline.ticks),
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        times_s=(),
        pts_s=(),
        exact=selection.exact,
        warnings=tuple(notes.warnings),
    )
    return info, timeline


def _by_device(accelerator: Accelerator, source: Path | int, bounds: Bounds, codec: str, take: _Taker) -> _Looks | None:
    """What a GPU decodes; None where it cannot, and a note why."""
    looks, timeline = None, take.timeline
    if codec not in CODECS:
        take.notes.add(f"decoded by the CPU: of {codec} a GPU's pictures may differ, or it has no decoder")
    elif not take.selection.runs:
        why = timeline.doubt or "it is broken, or begins in the middle"
        take.notes.add(f"decoded by the CPU, from the first picture on: {why}")
    else:
        try:
            with open_video(source, bounds, accelerator.settings) as container:
                stream = video_stream(container, bounds)
                looks = take.selected(stream.codec_context, by_number(container, stream, timeline), FORMATS)
        except (NotAVideo, MemoryError, RuntimeError):
            pass  # the file was opened before, so it is the GPU that was not
        if looks is None:
            take.notes.add(f"decoded by the CPU: the GPU did not take this {codec} stream")
    return looks


@dataclass(frozen=True)
class _Looks:
    """Of a video whose pictures were all taken: how the first of them looks."""

    orientation: Orientation
    width: int
    height: int

    @classmethod
    def of(cls, picture: VideoFrame) -> _Looks:
        return cls(Orientation(picture), picture.width, picture.height)


class _Taker:
    """Two ways from packets to the pictures that an assembly wants, which come to the same."""

    def __init__(self, timeline: Timeline, selection: Selection, assembly: Assembly, notes: Notes) -> None:
        self.timeline, self.selection, self.assembly, self.notes = timeline, selection, assembly, notes

    def selected(self, context: VideoCodecContext, fetch: Fetch, formats: Collection[str] = ()) -> _Looks | None:
        """Decode only what is needed; None where that does not go as it should, so that nothing may be left out.

        Args:
            formats: of pictures; without them any will do.
        """
        looks: _Looks | None = None
        try:
            for number, picture in _decode_runs(context, fetch, self.selection.runs):
                if formats and picture.format.name not in formats:
                    return None
                looks = looks or _Looks.of(picture)
                pick = self.selection.pick_of[number]
                self.assembly.take(pick, self.timeline.ticks[pick], picture)
        except (UnforeseenError, av.error.FFmpegError):
            return None
        assert looks is not None
        return looks

    def all(self, context: VideoCodecContext, packets: Iterable[Packet]) -> _Looks | None:
        """Decode from the first packet on until all is there; None where not one picture comes."""
        try:
            context.open(strict=False)
        except av.error.FFmpegError as error:
            raise UndecodableVideo(
                f"expected a header that the {context.name} decoder takes: {reason(error)}"
            ) from error
        missing = deque(self.assembly.missing())
        looks: _Looks | None = None
        for picture, tick, shown_until in self._shown(context, packets):
            looks = looks or _Looks.of(picture)
            while missing and (shown_until is None or self.timeline.ticks[missing[0]] < shown_until):
                self.assembly.take(missing.popleft(), tick, picture)
            if not missing:
                return looks
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

"""Probe a video, pick frames by presentation time, decode, resize. One pass over the packets, one over the pictures.

Memory is bounded by the clip asked for: of the decoded pictures only the last one is held.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from service.errors import NotAVideo, NoVideoStream, StartError, UndecodableVideo
from service.video.bounds import UNBOUNDED, Bounds
from service.video.sampling import Sampling

CONTAINERS = {
    "mp4": "mp4",
    "mov": "mov",
    "m4a": "m4a",
    "3gp": "3gp",
    "3g2": "3g2",
    "mj2": "mj2",
    "matroska": "mkv",
    "webm": "webm",
    "avi": "avi",
    "mpeg": "mpg",
    "mpegts": "ts",
    "mpegvideo": "m2v",
    "m4v": "m4v",
    "flv": "flv",
    "gif": "gif",
    "ogg": "ogg",
    "asf": "wmv",
    "yuv4mpegpipe": "y4m",
    "h264": "h264",
    "hevc": "h265",
    "ivf": "ivf",
    "obu": "obu",
}
"""Demuxers that may open an upload, and what people call such files. Playlists and anything else that names other
files stay out."""

CODECS = (
    "h264 hevc vp8 vp9 libvpx libvpx-vp9 av1 libdav1d mpeg1video mpeg2video mpeg4 msmpeg4 msmpeg4v2 msmpeg4v3 mjpeg "
    "wmv1 wmv2 wmv3 vc1 theora h261 h263 h263p flv prores dnxhd dvvideo gif rawvideo wrapped_avframe ffv1 huffyuv "
    "ffvhuff png qtrle svq1 svq3 cinepak"
).split()

MIN_FFMPEG = (8, 1, 2)
"""Below it a crafted file can run code (CVE-2026-8461)."""

_NO_PRESENTATION_TIME = {"avi"}
"""Containers that store decoding order only: their n-th picture on display carries the n-th smallest time stamp."""

_OPEN_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(CODECS),
}
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
    times_s: tuple[float, ...]
    """When each frame of the clip is shown."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """frames: uint8 [time, height, width, 3], full-range RGB."""

    frames: np.ndarray
    info: ClipInfo


@dataclass(frozen=True)
class _Timeline:
    """Presentation times of a stream's packets, ascending, in ticks of `time_base`; the end of the last picture."""

    ticks: list[int]
    end: int
    time_base: Fraction
    stored: bool
    """Whether the container stores presentation times, so that a picture's own may be trusted."""


@dataclass
class _Notes:
    """What went otherwise than a player would expect."""

    warnings: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def check_ffmpeg() -> None:
    """Raise StartError where the FFmpeg under PyAV has a known hole."""
    found = av.ffmpeg_version_info.lstrip("n").split("-")[0]
    numbers = tuple(int(part) for part in found.split(".") if part.isdigit())
    if numbers and numbers < MIN_FFMPEG:
        raise StartError(
            f"PyAV bundles FFmpeg {found}, expected at least {'.'.join(map(str, MIN_FFMPEG))} (CVE-2026-8461); "
            "upgrade with `pip install -U av`"
        )


def decode_clip(
    source: Path | int, sampling: Sampling, out: np.ndarray | None = None, bounds: Bounds = UNBOUNDED
) -> Clip:
    """Decode the frames of a video file that `sampling` asks for.

    Args:
        source: a local file, whose name plays no part in how it is read, or the descriptor of one that is open.
        sampling: which frames, and their form.
        out: uint8 [time, height, width, 3] to write to; a new array without it.
        bounds: how large the video may be.

    Raises:
        PictureTooLarge, VideoTooLong, TooManyFrames, TooManyStreams: it is larger than `bounds`.
        NotAVideo: no known container, or none that may be opened.
        NoVideoStream: a container without pictures.
        UndecodableVideo: not one picture could be decoded.
    """
    frames = np.empty(sampling.clip_shape, np.uint8) if out is None else out
    notes = _Notes()
    with _open(source, bounds) as container:
        timeline = _read_timeline(container, _video_stream(container, bounds), notes, bounds)
    with _open(source, bounds) as container:
        stream = _video_stream(container, bounds)
        base, first = timeline.time_base, timeline.ticks[0]
        targets = sampling.target_ticks(first, timeline.end)
        times: list[int] = []
        rotation = 0
        width, height = stream.width, stream.height
        resize = _Resizer(sampling)
        for picture, ticks, shown_until in _shown(container, stream, timeline, notes):
            if not times:
                rotation = picture.rotation
                width, height = picture.width, picture.height
            while len(times) < len(targets) and (shown_until is None or targets[len(times)] < shown_until):
                index = len(times)
                if index and times[-1] == ticks:
                    frames[index] = frames[index - 1]
                else:
                    frames[index] = resize(picture)
                times.append(ticks)
            if len(times) == len(targets):
                break
        container_name, codec = container.format.name.split(",")[0], stream.codec_context.codec.canonical_name
        rate = stream.average_rate
    if not times:
        raise UndecodableVideo(f"expected pictures, but none of {len(timeline.ticks)} {codec} packets could be decoded")
    if rotation % 180:
        width, height = height, width
    info = ClipInfo(
        container=container_name,
        codec=codec,
        width=width,
        height=height,
        duration_s=float((timeline.end - first) * base),
        frame_rate=float(rate) if rate else None,
        num_frames=len(timeline.ticks),
        rotation=rotation,
        times_s=tuple(float((tick - first) * base) for tick in times),
        warnings=tuple(notes.warnings),
    )
    return Clip(frames, info)


def _open(source: Path | int, bounds: Bounds) -> InputContainer:
    options = _OPEN_OPTIONS | bounds.codec_options()
    if isinstance(source, int):
        # All who read from a descriptor share its position, so there must be one container at a time.
        os.lseek(source, 0, os.SEEK_SET)
        name, options = "fd:", options | {"protocol_whitelist": "fd", "fd": str(source)}
    else:
        name, options = str(source), options | {"protocol_whitelist": "file"}
    try:
        # The white lists hold whatever the name is: it can choose neither a playlist demuxer nor a network protocol.
        container = av.open(name, options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        # FFmpeg calls it an invalid argument where it knows the format and the white list leaves it out.
        got = "" if isinstance(error, av.error.ArgumentError) else ", or one that is incomplete or broken"
        raise NotAVideo(f"expected a video ({', '.join(CONTAINERS.values())}), got something else{got}") from error
    if not CONTAINERS.keys() & set(container.format.name.split(",")):
        container.close()
        raise NotAVideo(f"expected a video ({', '.join(CONTAINERS.values())}), got {container.format.name!r}")
    return container


def _reason(error: Exception) -> str:
    """FFmpeg's words without the file's path: the path is the service's own business."""
    return getattr(error, "strerror", None) or type(error).__name__


def _video_stream(container: InputContainer, bounds: Bounds) -> VideoStream:
    """The stream that a player shows: the largest that is not cover art."""
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise NoVideoStream(f"expected a video stream, found {kinds} in a {container.format.name} file")
    stream = max(streams, key=lambda s: (bool(s.disposition & s.disposition.default), s.width * s.height, -s.index))
    bounds.check_header(container, stream)
    context = stream.codec_context
    if context is None or context.codec.name not in CODECS:
        name = context.codec.name if context is not None else "an unknown codec"
        raise UndecodableVideo(f"expected a supported codec, got {name}")
    context.options = {"codec_whitelist": _OPEN_OPTIONS["codec_whitelist"]} | bounds.codec_options()
    context.thread_count = 1
    return stream


def _read_timeline(container: InputContainer, stream: VideoStream, notes: _Notes, bounds: Bounds) -> _Timeline:
    """Presentation times from the packets alone: headers lie about counts and durations."""
    pts: list[int] = []
    dts: list[int] = []
    last_duration = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.pts is not None:
                pts.append(packet.pts)
            if packet.dts is not None:
                dts.append(packet.dts)
            bounds.check_count(max(len(pts), len(dts)))
            if stamp is not None and packet.duration:
                last_duration = packet.duration
    except av.error.FFmpegError as error:
        notes.add(f"the file breaks off: {_reason(error)}")
    base = stream.time_base or Fraction(1, 25)
    stored = container.format.name not in _NO_PRESENTATION_TIME and len(pts) >= len(dts)
    ticks = sorted(pts if stored else dts)
    if not ticks:
        raise UndecodableVideo("expected packets with time stamps in the video stream, found none")
    bounds.check_span((ticks[-1] - ticks[0]) * base)
    if not last_duration:
        last_duration = round((ticks[-1] - ticks[0]) / (len(ticks) - 1)) if len(ticks) > 1 else 0
    if stream.frames and abs(stream.frames - len(ticks)) > 1:
        notes.add(f"the header counts {stream.frames} frames, the stream holds {len(ticks)}")
    return _Timeline(ticks, ticks[-1] + max(last_duration, 1), base, stored)


def _shown(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, notes: _Notes
) -> Iterator[tuple[VideoFrame, int, int | None]]:
    """Pictures in display order, each with its time and the time of the next in ticks; the last is shown for ever."""
    held: tuple[VideoFrame, int] | None = None
    for number, picture in enumerate(_pictures(container, stream, notes)):
        if timeline.stored and picture.pts is not None:
            ticks = picture.pts
        else:
            ticks = timeline.ticks[min(number, len(timeline.ticks) - 1)]
        if held is not None:
            if ticks <= held[1]:
                continue
            yield held[0], held[1], ticks
        held = picture, ticks
    if held is not None:
        yield held[0], held[1], None


def _pictures(container: InputContainer, stream: VideoStream, notes: _Notes) -> Iterator[VideoFrame]:
    """Decode to the end, past packets that are broken."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            # Demuxing ended early (noted while probing): hand out what the decoder still holds.
            yield from stream.codec_context.decode(None)
            return
        try:
            pictures = packet.decode()
        except av.error.FFmpegError as error:
            notes.add(f"broken packets were skipped: {_reason(error)}")
            continue
        for picture in pictures:
            if isinstance(picture, VideoFrame):
                yield picture


class _Resizer:
    """One swscale context for a clip: straight to target size and RGB, then turned as the file says."""

    def __init__(self, sampling: Sampling) -> None:
        self.height, self.width = sampling.height, sampling.width
        self.flags = _FILTERS[sampling.resize_filter] | _EXACT
        self.reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> np.ndarray:
        """uint8 [height, width, 3]."""
        turns = picture.rotation // 90 % 4
        width, height = (self.height, self.width) if turns % 2 else (self.width, self.height)
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
        ).to_ndarray()
        return np.rot90(rgb, turns) if turns else rgb


@functools.cache
def supported() -> dict[str, tuple[str, ...]]:
    """Containers and codecs that this build of PyAV can read, of those that may be read."""
    codecs = tuple(name for name in CODECS if name in av.codec.codecs_available)
    formats = tuple(name for name in CONTAINERS if name in av.formats_available)
    return {"containers": formats, "codecs": codecs}

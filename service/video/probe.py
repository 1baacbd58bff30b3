"""Open an upload: which containers and codecs may be read, and which stream is the video."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from service.errors import NotAVideo, NoVideoStream, StartError, UndecodableVideo
from service.video.bounds import Bounds

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

_OPEN_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(CODECS),
}

_LIVE_OPTIONS = {"probesize": str(1 << 20), "analyzeduration": "1000000"}
"""Bytes and microseconds that are read before the streams are known; all of it is decoded, too."""


def check_ffmpeg() -> None:
    """Raise StartError where the FFmpeg under PyAV has a known hole."""
    found = av.ffmpeg_version_info.lstrip("n").split("-")[0]
    numbers = tuple(int(part) for part in found.split(".") if part.isdigit())
    if numbers and numbers < MIN_FFMPEG:
        raise StartError(
            f"PyAV bundles FFmpeg {found}, expected at least {'.'.join(map(str, MIN_FFMPEG))} (CVE-2026-8461); "
            "upgrade with `pip install -U av`"
        )


@functools.cache
def supported() -> dict[str, tuple[str, ...]]:
    """Containers and codecs that this build of PyAV can read, of those that may be read."""
    codecs = tuple(name for name in CODECS if name in av.codec.codecs_available)
    formats = tuple(name for name in CONTAINERS if name in av.formats_available)
    return {"containers": formats, "codecs": codecs}


def open_video(
    source: Path | int, bounds: Bounds, hwaccel: HWAccel | None = None, *, live: bool = False
) -> InputContainer:
    """Open a file by its path, or by the descriptor of one that is open; with `hwaccel`, to be decoded by a GPU.

    Args:
        live: the descriptor is a pipe, and little is to be waited for before it is known what comes.

    Raises:
        NotAVideo: no known container, or none that may be opened.
    """
    options = _OPEN_OPTIONS | bounds.codec_options()
    if live:
        name, options = "fd:", options | {"protocol_whitelist": "fd", "fd": str(source)} | _LIVE_OPTIONS
    elif isinstance(source, int):
        # All who read from a descriptor share its position, so there must be one container at a time.
        os.lseek(source, 0, os.SEEK_SET)
        name, options = "fd:", options | {"protocol_whitelist": "fd", "fd": str(source)}
    else:
        name, options = str(source), options | {"protocol_whitelist": "file"}
    try:
        # The white lists hold whatever the name is: it can choose neither a playlist demuxer nor a network protocol.
        container = av.open(name, options=options, metadata_errors="replace", hwaccel=hwaccel)
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        # FFmpeg calls it an invalid argument where it knows the format and the white list leaves it out.
        got = "" if isinstance(error, av.error.ArgumentError) else ", or one that is incomplete or broken"
        raise NotAVideo(f"expected a video ({', '.join(CONTAINERS.values())}), got something else{got}") from error
    if not CONTAINERS.keys() & set(container.format.name.split(",")):
        container.close()
        raise NotAVideo(f"expected a video ({', '.join(CONTAINERS.values())}), got {container.format.name!r}")
    return container


def video_stream(
    container: InputContainer, bounds: Bounds, *, threads: int = 1, forgiving: bool = False
) -> VideoStream:
    """The stream that a player shows, the largest that is not cover art, ready to be decoded.

    Args:
        bounds: how large the video may be.
        threads: of the decoder.
        forgiving: whether the decoder makes up what is missing in a broken picture, or gives an error.

    Raises:
        NoVideoStream: there is none.
        UndecodableVideo: its codec is none of CODECS.
        PictureTooLarge, VideoTooLong, TooManyFrames, TooManyStreams: the header says that it is larger than `bounds`.
    """
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise NoVideoStream(f"expected a video stream, found {kinds} in a {container.format.name} file")
    stream = max(streams, key=_prominence)
    context = stream.codec_context
    if context is None or context.codec.name not in CODECS:
        name = context.codec.name if context is not None else "an unknown codec"
        raise UndecodableVideo(f"expected a supported codec, got {name}")
    bounds.check_header(container, stream)
    context.options = {"codec_whitelist": _OPEN_OPTIONS["codec_whitelist"]} | bounds.codec_options()
    if not forgiving:
        context.options = context.options | {"err_detect": "explode"}
    context.thread_count = threads
    context.thread_type = "AUTO"
    return stream


def _prominence(stream: VideoStream) -> tuple[bool, bool, int, int]:
    """Orders streams by what a player would rather show. Those of unknown codecs have no size."""
    known = stream.codec_context is not None
    area = stream.width * stream.height if known else 0
    return known, bool(stream.disposition & stream.disposition.default), area, -stream.index


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The stream's packets, but for empty ones.

    PyAV ends in an IndexError where other streams turned up on the way: it seeks them among those of the start.
    """
    with contextlib.suppress(IndexError):
        yield from (packet for packet in container.demux(stream) if packet.size)


def reason(error: Exception) -> str:
    """FFmpeg's words without the file's path: the path is the service's own business."""
    return getattr(error, "strerror", None) or type(error).__name__

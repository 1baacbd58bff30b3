"""Write frames as a real encoded video file."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

PIXEL_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8", "ffv1": "bgr0"}


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    rate: float = 25.0,
    container: str | None = None,
    options: Mapping[str, str] | None = None,
    bit_rate: int | None = None,
) -> None:
    """Encode uint8 frames [time, height, width, 3] to `path`; the suffix chooses the container unless it is named.

    Args:
        codec: an FFmpeg encoder's name.
        rate: frames per second.
        options: the encoder's private options, for example {"crf": "23"}.
        bit_rate: bits per second, for encoders without a quality option.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"expected uint8 [time, height, width, 3], got {frames.dtype} {frames.shape}")
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=dict(options or {}))
        if not isinstance(stream, VideoStream):
            raise ValueError(f"expected an encoder of video, got {codec!r}, of {stream.type}")
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        if bit_rate:
            stream.bit_rate = bit_rate
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))

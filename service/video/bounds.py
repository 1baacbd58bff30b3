"""How large a video may be. Checked on what the headers claim and on the packets, before anything is decoded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from av.container import InputContainer
from av.video.stream import VideoStream

from service.errors import PictureTooLarge, TooManyFrames, TooManyStreams, VideoTooLong

_LENGTH_IN_HEADER = {"mov", "matroska", "webm", "avi", "flv", "asf"}
"""Demuxers whose lengths come from a header. FFmpeg guesses those of the others from the size of the file."""

_MICROSECONDS = 1_000_000
_SIZE_REFUSED = re.compile(r"Picture size (\d+)x(\d+)")
"""FFmpeg's words for what `max_pixels`, or a limit of its own, does not let through."""


@dataclass(frozen=True)
class Bounds:
    """What a decoder takes on. A file that claims more is refused as if it held more."""

    max_pixels: int = 36_000_000
    """Width times height of a picture."""
    max_duration_s: float = 600.0
    max_frames: int = 36_000
    """Pictures in the stream, not of the clip made of it."""
    max_streams: int = 64

    def codec_options(self) -> dict[str, str]:
        """Options under which FFmpeg's decoders refuse a picture that turns out larger than its header said."""
        return {"max_pixels": str(self.max_pixels)}

    def check_header(self, container: InputContainer, stream: VideoStream) -> None:
        """Hold what the file says of itself against the bounds.

        Raises:
            TooManyStreams, PictureTooLarge, TooManyFrames, VideoTooLong.
        """
        if len(container.streams) > self.max_streams:
            raise TooManyStreams(
                f"expected at most {self.max_streams} streams (pictures, sound, subtitles and the like), "
                f"found {len(container.streams)}"
            )
        self.check_size(stream.width, stream.height)
        if _LENGTH_IN_HEADER & set(container.format.name.split(",")):
            self.check_count(stream.frames)
            if stream.duration is not None and stream.time_base is not None:
                self.check_span(stream.duration * stream.time_base)
            elif container.duration is not None:
                self.check_span(Fraction(container.duration, _MICROSECONDS))

    def check_size(self, width: int, height: int) -> None:
        """Raise PictureTooLarge where a picture has, or is said to have, more pixels than may be."""
        if width * height > self.max_pixels:
            raise PictureTooLarge(
                f"expected pictures of at most {self.max_pixels:,} pixels, the video's are {width} x {height} = "
                f"{width * height:,}"
            )

    def check_words(self, messages: Iterable[str]) -> None:
        """Raise PictureTooLarge where FFmpeg says that it refused a picture for its size."""
        for size in filter(None, map(_SIZE_REFUSED.search, messages)):
            self.check_size(int(size[1]), int(size[2]))

    def check_count(self, num_frames: int) -> None:
        """Raise TooManyFrames where a stream has, or says that it has, more pictures than may be."""
        if num_frames > self.max_frames:
            raise TooManyFrames(f"expected a video of at most {self.max_frames:,} frames, got at least {num_frames:,}")

    def check_span(self, duration_s: Fraction | float) -> None:
        """Raise VideoTooLong where a stream lasts, or says that it lasts, longer than may be."""
        if duration_s > self.max_duration_s:
            raise VideoTooLong(f"expected a video of at most {self.max_duration_s:g} s, got {float(duration_s):,.1f} s")


UNBOUNDED = Bounds(max_pixels=2**31 - 1, max_duration_s=float("inf"), max_frames=2**63, max_streams=2**31)
"""For files that one trusts, a training set's."""

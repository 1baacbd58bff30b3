"""What a clip is: bytes of a video in, a uint8 array [time, height, width, 3] and what is known of it out."""

from service.video.decode import Clip, ClipInfo, decode_clip, decode_windows
from service.video.sampling import Sampling

__all__ = ["Clip", "ClipInfo", "Sampling", "decode_clip", "decode_windows"]

"""Decoding by a GPU's video engine (NVDEC), through FFmpeg's CUDA acceleration.

The pictures are those of the CPU: only codecs take part whose standards give every bit, and only picture formats that
swscale reads alike. Two things are known less well than on the CPU. The engine reports no damage inside a picture, so
what a broken file shows may differ; and a driver needs files and threads, so less of the sandbox holds.
"""

from __future__ import annotations

from typing import Literal

import av.error
import av.logging
from av.codec import CodecContext
from av.codec.hwaccel import HWAccel
from av.packet import Packet

from service.errors import StartError
from service.video.probe import reason

Device = Literal["cpu", "cuda"]

CODECS = ("h264", "hevc", "vp8", "vp9")
"""MPEG-1 to MPEG-4 and Motion JPEG leave the last bit of the inverse transform to the decoder; AV1's decoder in PyAV,
libdav1d, knows no GPU."""

FORMATS = {"nv12", "p010le", "yuv444p"}
"""Of downloaded pictures: 8 and 10 bits, 4:2:0 and 4:4:4."""

_PICTURE = bytes.fromhex(
    "0000016764000aacd9442684000003000400000300c83c48965800000168ef839cb000000165888400ff178a309082f06abccb41"
)
"""64 x 64 of grey, in H.264."""


class Accelerator:
    """A GPU, ready to decode. As long as this lives, so does its CUDA context, and no clip waits for another.

    Raises:
        StartError: the GPU cannot decode; what it lacks.
    """

    def __init__(self, device_id: int = 0) -> None:
        # All contexts on the device's primary one, which costs tenths of a second only while nobody else has it.
        self.settings = HWAccel("cuda", str(device_id), allow_software_fallback=False, options={"primary_ctx": "1"})
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as said:
                self._held = self._try()
        except (av.error.FFmpegError, NotImplementedError) as error:
            words = "; ".join(message.strip() for _, _, message in said) or reason(error)
            raise StartError(
                f"--decode-device cuda: expected GPU {device_id} to decode a picture, got {words}. It needs an NVIDIA "
                "driver with libcuda.so.1 and libnvcuvid.so.1; in a container NVIDIA_DRIVER_CAPABILITIES must name "
                "compute and video"
            ) from error
        finally:
            av.logging.set_level(None)

    def _try(self) -> CodecContext:
        context = CodecContext.create("h264", "r", hwaccel=self.settings)
        pictures = [*context.decode(Packet(_PICTURE)), *context.decode(None)]
        if not pictures:
            raise av.error.ExternalError(-1, "no picture")
        return context

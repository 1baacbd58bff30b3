"""Files that are too large, or say that they are: refused under a name of their own, at once and cheaply."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import av
import numpy as np
import pytest

from service.errors import (
    BY_CODE,
    PictureTooLarge,
    RequestError,
    TooManyFrames,
    TooManyStreams,
    TooMuchMemory,
    VideoTooLong,
)
from service.settings import Settings
from service.video import Sampling, child, decode_clip
from service.video.bounds import Bounds
from service.video.child import Policy
from service.video.sandbox import Limits
from service.video.workers import DecodePool
from tests.service.conftest import PATIENCE_S, coloured_frames, running
from tests.service.routes.test_problem import check_problem
from ttmodels.data.encode import write_video

SAMPLING = Sampling(num_frames=4, height=24, width=32)
FRAMES = coloured_frames((200, 30, 30), num_frames=10)

AT_ONCE_S = 0.25
"""Of processor time: the claims below cost 1 to 50 ms, the index of a million frames most of it."""


def refusal(path: Path, bounds: Bounds | None = None) -> RequestError:
    """What a decoder process answers, asked in this one; at once."""
    slot = SharedMemory(create=True, size=SAMPLING.clip_bytes)
    try:
        with path.open("rb") as upload:
            began = time.process_time()
            reply = child.run(upload.fileno(), SAMPLING, slot, bounds or Bounds())
            spent_s = time.process_time() - began
    finally:
        slot.close()
        slot.unlink()
    assert "error" in reply, f"expected a refusal, got {reply}"
    assert spent_s < AT_ONCE_S
    return BY_CODE[reply["error"]](reply["detail"])


def altered(path: Path, *pairs: tuple[bytes, bytes]) -> Path:
    """The file with each of the byte strings replaced wherever it occurs."""
    data = path.read_bytes()
    for old, new in pairs:
        assert old in data, old
        data = data.replace(old, new)
    path.write_bytes(data)
    return path


# ---- bounds that a real video passes


def test_each_bound_has_its_error_and_its_words(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES)
    decode_clip(path, SAMPLING, bounds=Bounds(max_pixels=64 * 48, max_duration_s=0.4, max_frames=10, max_streams=1))
    error = refusal(path, Bounds(max_pixels=64 * 48 - 1))
    assert isinstance(error, PictureTooLarge)
    assert error.detail == "expected pictures of at most 3,071 pixels, the video's are 64 x 48 = 3,072"
    error = refusal(path, Bounds(max_duration_s=0.39))
    assert isinstance(error, VideoTooLong)
    assert error.detail == "expected a video of at most 0.39 s, got 0.4 s"
    error = refusal(path, Bounds(max_frames=9))
    assert isinstance(error, TooManyFrames)
    assert error.detail == "expected a video of at most 9 frames, got at least 10"
    error = refusal(path, Bounds(max_streams=0))
    assert isinstance(error, TooManyStreams)
    assert error.detail.startswith("expected at most 0 streams")
    assert error.detail.endswith("found 1")


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi", "mpg", "flv"])
def test_what_no_header_says_is_counted(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, FRAMES, codec={"mpg": "mpeg2video", "avi": "mpeg4"}.get(suffix, "libx264"))
    assert isinstance(refusal(path, Bounds(max_frames=9)), TooManyFrames)
    assert isinstance(refusal(path, Bounds(max_duration_s=0.3)), VideoTooLong)


def test_settings_reach_the_decoders_and_the_answer_names_the_bound(models: Path, clips: dict[str, Path]) -> None:
    settings = Settings(models=models, default_model="colours/1", provider="cpu", decode_workers=1)
    for change, code in {
        ("max_pixels", 3071): "picture_too_large",
        ("max_duration_s", 0.5): "video_too_long",
        ("max_frames", 19): "too_many_frames",
    }.items():
        with running(settings.model_copy(update=dict([change]))) as service:
            for path in clips.values():
                check_problem(service.post(path), 422, code)


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIXELS": "1", "DURATION_S": "2.5", "FRAMES": "3", "STREAMS": "4"}.items():
        monkeypatch.setenv(f"TTVIDEO_MAX_{name}", value)
    monkeypatch.setenv("TTVIDEO_SANDBOX", "required")
    monkeypatch.setenv("TTVIDEO_DECODER_MEMORY_BYTES", str(1 << 30))
    monkeypatch.setenv("TTVIDEO_DECODER_MAX_CLIPS", "7")
    monkeypatch.setenv("TTVIDEO_DECODER_MAX_RSS_BYTES", "8")
    assert Settings().decoder_policy() == Policy(
        bounds=Bounds(max_pixels=1, max_duration_s=2.5, max_frames=3, max_streams=4),
        sandbox="required",
        limits=Limits(address_space_bytes=1 << 30),
        max_clips=7,
        max_rss_bytes=8,
    )


# ---- files that lie


def jpeg_size(width: int, height: int) -> bytes:
    return b"\x08" + struct.pack(">HH", height, width) + b"\x03"


def vp8_size(width: int, height: int) -> bytes:
    return b"\x9d\x01\x2a" + struct.pack("<HH", width, height)


def gif_size(width: int, height: int) -> bytes:
    return struct.pack("<HH", width, height)


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [
        ("a.avi", "mjpeg", jpeg_size),
        ("a.mkv", "mjpeg", jpeg_size),
        ("a.mov", "mjpeg", jpeg_size),
        ("a.webm", "libvpx", vp8_size),
        ("a.gif", "gif", gif_size),
    ],
)
def test_pictures_that_claim_to_be_huge(
    name: str, codec: str, size: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    path = tmp_path / name
    write_video(path, FRAMES, codec=codec)
    altered(path, (size(64, 48), size(16383, 16383)))
    for _ in range(2):  # FFmpeg does not say the same thing twice
        error = refusal(path)
        assert isinstance(error, PictureTooLarge)
        assert error.detail.endswith("16383 x 16383 = 268,402,689")


def test_a_header_that_claims_huge_pictures(tmp_path: Path) -> None:
    """The pictures of this codec have no size but the header's: BITMAPINFOHEADER's biWidth and biHeight."""
    path = tmp_path / "a.avi"
    write_video(path, FRAMES, codec="ffvhuff")
    data = bytearray(path.read_bytes())
    size = data.index(b"strf") + 8 + 4
    assert struct.unpack_from("<ii", data, size) == (64, 48)
    struct.pack_into("<ii", data, size, 16384, 16384)
    path.write_bytes(data)
    error = refusal(path)
    assert isinstance(error, PictureTooLarge)
    assert "16384 x 16384" in error.detail


def samples_of_an_mp4(count: int) -> tuple[tuple[bytes, bytes], ...]:
    """stsz and stts (ISO 14496-12, 8.7.3 and 8.6.1) that claim `count` pictures in place of 10."""
    return (
        (b"stts" + struct.pack(">IIII", 0, 1, 10, 512), b"stts" + struct.pack(">IIII", 0, 1, count, 512)),
        (b"stsz" + struct.pack(">III", 0, 0, 10), b"stsz" + struct.pack(">III", 0, 100, count)),
        (b"stsc" + struct.pack(">IIIII", 0, 1, 1, 10, 1), b"stsc" + struct.pack(">IIIII", 0, 1, 1, count, 1)),
    )


@pytest.mark.parametrize("count", [36_001, 1_000_000, 2**31 - 1])
def test_an_mp4_that_claims_a_million_frames(count: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES, options={"bf": "0"})
    altered(path, *samples_of_an_mp4(count))
    error = refusal(path)
    assert isinstance(error, TooManyFrames)
    assert error.detail.endswith(f"got at least {count:,}")


def test_an_avi_that_claims_a_million_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, FRAMES, codec="mpeg4")
    data = bytearray(path.read_bytes())
    header = data.index(b"strh")
    assert struct.unpack_from("<I", data, header + 8 + 32)[0] == 10
    struct.pack_into("<I", data, header + 8 + 32, 1_000_000)
    path.write_bytes(data)
    error = refusal(path)
    assert isinstance(error, TooManyFrames)
    assert error.detail == "expected a video of at most 36,000 frames, got at least 1,000,000"


def test_a_matroska_that_claims_to_last_a_year(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, FRAMES)
    altered(path, (b"\x44\x89\x88" + struct.pack(">d", 400.0), b"\x44\x89\x88" + struct.pack(">d", 3.15e10)))
    error = refusal(path)
    assert isinstance(error, VideoTooLong)
    assert error.detail == "expected a video of at most 600 s, got 31,500,000.0 s"


def test_frames_without_end_are_counted_no_further_than_the_bound(tmp_path: Path) -> None:
    """A file of nothing but tiny packets, whose header has no count."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24"))
        (first,) = stream.encode(None)
        for i in range(50_000):
            packet = av.Packet(b"\0\0\0\1\x0c\xff" if i else bytes(first))
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 1000), i, i
            output.mux(packet)
    error = refusal(path, Bounds(max_frames=5_000))  # 5 microseconds each
    assert isinstance(error, TooManyFrames)
    assert error.detail.endswith("got at least 5,001")


def test_a_file_of_many_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("mpeg4", rate=25) for _ in range(65)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for stream in streams:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
            output.mux(stream.encode(None))
    error = refusal(path)
    assert isinstance(error, TooManyStreams)
    assert "expected at most 64 streams" in error.detail
    assert "found 65" in error.detail


# ---- memory


def test_a_video_that_needs_more_memory_than_a_decoder_has(tmp_path: Path, clips: dict[str, Path]) -> None:
    path = tmp_path / "a.mp4"
    frame = np.zeros((1, 5600, 6400, 3), np.uint8)
    write_video(path, frame, options={"preset": "ultrafast"})
    policy = Policy(limits=Limits(address_space_bytes=300 << 20))

    async def test() -> None:
        pool = DecodePool(1, SAMPLING.clip_bytes, policy)
        await pool.start()
        before = pool.pids
        try:
            with pytest.raises(TooMuchMemory, match="in the memory that a decoder has"):
                await pool.decode(path, SAMPLING, time.monotonic() + PATIENCE_S)
            await pool.decode(clips["red"], SAMPLING, time.monotonic() + PATIENCE_S)
            assert pool.pids == before
        finally:
            await pool.close()

    asyncio.run(test())

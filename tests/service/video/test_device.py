"""A GPU decodes what it can, the CPU the rest, and a clip is the same from both."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from service.errors import StartError
from service.settings import Settings
from service.video import Clip, Sampling, decode, decode_clip
from service.video.bounds import Bounds
from service.video.child import Policy
from service.video.device import CODECS, FORMATS, Accelerator
from service.video.picture import Resizer
from service.video.workers import DecodePool
from tests.service.video.making import Recipe, make, scenery

NOWHERE = 99
"""A GPU that no machine has."""
SAMPLING = Sampling(num_frames=9, height=24, width=32)
X264 = Recipe("mp4", "libx264", {"preset": "veryfast", "crf": "28"}, bf=2, gop=10)
SIZE = 256, 160
"""No engine takes pictures of less than 144 x 144 in every codec."""


class Opened:
    """What `open_video` was asked to open, with which GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.with_device: list[bool] = []
        real = decode.open_video

        def open_video(source: Path | int, bounds: Bounds, hwaccel: object = None) -> InputContainer:
            self.with_device.append(hwaccel is not None)
            return real(source, bounds)

        monkeypatch.setattr(decode, "open_video", open_video)


class Pretence:
    """A GPU whose pictures come from the CPU: `decode` is told that they are in a form that it takes, or not."""

    settings = object()


def decode_by(accelerator: object, path: Path) -> Clip:
    return decode_clip(path, SAMPLING, accelerator=cast(Accelerator, accelerator))


@pytest.mark.parametrize(("ours", "theirs"), [("yuv420p", "nv12"), ("yuv420p10le", "p010le")])
def test_what_a_gpu_hands_down_is_scaled_to_the_same_bytes(ours: str, theirs: str) -> None:
    assert theirs in FORMATS
    for size, filter_, full in itertools.product([(64, 48), (130, 98)], ["area", "bilinear", "bicubic"], [1, 2]):
        picture = av.VideoFrame.from_ndarray(scenery(1, size)[0], format="rgb24").reformat(format=ours)
        handed_down = picture.reformat(format=theirs)
        picture.color_range = handed_down.color_range = full
        for height, width in ((24, 32), (120, 160), size[::-1]):
            resize = Resizer(Sampling(height=height, width=width, resize_filter=cast(Any, filter_)))
            pixels = np.zeros((2, height, width, 3), np.uint8)
            resize(picture, pixels[0])
            resize(handed_down, pixels[1])
            assert np.array_equal(*pixels)
            assert pixels.max() > 100


# ---- which way a clip goes


@pytest.mark.parametrize("held", [True, False])
def test_what_a_gpu_can_decode_it_decodes(held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "FORMATS", {"yuv420p"})
    if not held:
        monkeypatch.setattr("service.video.timeline.HELD_BYTES", 0)
    make(tmp_path / "a.mp4", X264)
    plain = decode_clip(tmp_path / "a.mp4", SAMPLING)
    opened = Opened(monkeypatch)
    clip = decode_by(Pretence(), tmp_path / "a.mp4")
    assert opened.with_device == [False, True]
    assert np.array_equal(clip.frames, plain.frames)
    assert clip.info == plain.info


@pytest.mark.parametrize(
    ("recipe", "warning", "opened_by"),
    [
        (X264, "the GPU did not take this h264 stream", [False, True, False]),
        (Recipe("mp4", "mpeg4"), "of mpeg4 a GPU's pictures may differ", [False, False]),
        (
            dataclasses.replace(X264, suffix="avi"),
            "from the first picture on: pictures out of order without their times",
            [False, False],
        ),
        (
            dataclasses.replace(X264, suffix="ts", drop=4, num_frames=80),
            "from the first picture on: it is broken, or begins in the middle",
            [False, False],
        ),
    ],
    ids=str,
)
def test_what_it_cannot_the_cpu_does(
    recipe: Recipe, warning: str, opened_by: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's pictures are in a form that no GPU of ours has."""
    path = tmp_path / f"a.{recipe.suffix}"
    make(path, recipe)
    plain = decode_clip(path, SAMPLING)
    opened = Opened(monkeypatch)
    clip = decode_by(Pretence(), path)
    assert opened.with_device == opened_by
    assert np.array_equal(clip.frames, plain.frames)
    said = [line for line in clip.info.warnings if line not in plain.info.warnings]
    assert len(said) == 1
    assert said[0].startswith(f"decoded by the CPU{',' if warning.startswith('from') else ':'} {warning}")


def test_a_gpu_that_is_gone_costs_no_clip(tmp_path: Path) -> None:
    """With FFmpeg's own error: of a machine without a driver, or without that many GPUs."""

    class Gone:
        settings = HWAccel("cuda", str(NOWHERE), allow_software_fallback=False)

    make(tmp_path / "a.mp4", X264)
    clip = decode_by(Gone(), tmp_path / "a.mp4")
    assert np.array_equal(clip.frames, decode_clip(tmp_path / "a.mp4", SAMPLING).frames)
    assert clip.info.warnings == ("decoded by the CPU: the GPU did not take this h264 stream",)


# ---- at the start


def test_a_gpu_that_does_not_decode_is_no_start() -> None:
    with pytest.raises(
        StartError, match=r"expected GPU 99 to decode a picture, got .+ libnvcuvid.so.1; in a container"
    ):
        Accelerator(NOWHERE)


@pytest.mark.parametrize(
    ("sandbox", "message"),
    [("auto", "expected GPU 99 to decode a picture"), ("required", "cannot hold one on a GPU: a GPU's driver opens")],
)
def test_decoders_refuse_to_start(sandbox: Any, message: str) -> None:
    settings = Settings(decode_device="cuda", device_id=NOWHERE, sandbox=sandbox)
    assert settings.decoder_policy() == Policy(device="cuda", device_id=NOWHERE, sandbox=sandbox)

    async def start() -> None:
        pool = DecodePool(1, 1000, settings.decoder_policy())
        try:
            await pool.start()
        finally:
            await pool.close()

    with pytest.raises(StartError, match=message):
        asyncio.run(start())


# ---- on a GPU


ON_GPU = [
    dataclasses.replace(X264, size=SIZE),
    dataclasses.replace(X264, size=SIZE, full_range=True, colorspace=1, matrix="90"),
    Recipe("mkv", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}, size=SIZE, bf=3),
    Recipe(
        "mkv", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}, size=SIZE, pix_fmt="yuv420p10le"
    ),
    Recipe("webm", "libvpx", {"speed": "8"}, size=SIZE),
    Recipe("webm", "libvpx-vp9", {"speed": "8"}, size=SIZE),
]


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ON_GPU, ids=str)
def test_a_gpus_clip_is_the_cpus(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / f"a.{recipe.suffix}"
    make(path, recipe)
    plain = decode_clip(path, SAMPLING)
    clip = decode_by(Accelerator(), path)
    assert plain.info.codec in CODECS
    assert clip.info == plain.info, "no warning: the GPU did it"
    assert np.array_equal(clip.frames, plain.frames)


@pytest.mark.gpu
def test_decoder_processes_on_a_gpu(tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", ON_GPU[0])

    async def twice() -> list[Clip]:
        pool = DecodePool(1, SAMPLING.clip_bytes, Policy(device="cuda"))
        await pool.start()
        try:
            pids = pool.pids
            clips = [(await pool.decode(tmp_path / "a.mp4", SAMPLING, time.monotonic() + 30)).result for _ in range(2)]
            assert pool.pids == pids, "the process, and its CUDA context, stay"
        finally:
            await pool.close()
        return clips

    plain = decode_clip(tmp_path / "a.mp4", SAMPLING)
    for clip in asyncio.run(twice()):
        assert clip.info == plain.info
        assert np.array_equal(clip.frames, plain.frames)

"""Which pictures of a live stream count, and what comes of streams that no player would like."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotAVideo, PictureTooLarge, UndecodableVideo
from service.video import Sampling, decode_clip
from service.video.bounds import Bounds
from service.video.live import MAX_GAP_S, on_display, watch
from service.video.streaming import as_video
from service.video.timeline import Notes
from tests.service.conftest import coloured_frames
from tests.service.routes.test_stream import moving, write

FORM = Sampling(num_frames=1, height=12, width=16)


def piped(data: bytes) -> int:
    """The end of a pipe from which it can be read."""
    out, into = os.pipe()

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(into, "wb") as end:
            end.write(data)

    threading.Thread(target=fill, daemon=True).start()
    return out


def seen(
    data: bytes, rate: float | None = None, bounds: Bounds | None = None
) -> tuple[np.ndarray, list[float | None], list[str]]:
    """Frames, times and warnings."""
    out, notes = np.empty(FORM.clip_shape[1:], np.uint8), Notes()
    descriptor = piped(data)
    frames, times = [], []
    try:
        for time_s in watch(descriptor, FORM, rate, out, bounds or Bounds(), notes):
            frames.append(out.copy())
            times.append(time_s)
    finally:
        os.close(descriptor)
    return np.stack(frames), times, notes.warnings


@given(
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    rate=st.sampled_from([1.0, 2.5, 5.0, 7.0, 29.97, 100.0]),
)
def test_a_rate_takes_what_a_models_sampling_takes_of_the_file(steps: list[int], rate: float) -> None:
    """Up to the last picture: a file's last one stays on display, a stream's is the end."""
    ticks = [7, *(7 + int(total) for total in np.cumsum(steps))]
    base = Fraction(1, 100)
    exact = Fraction(rate).limit_denominator(100_000)
    count = math.floor((ticks[-1] - ticks[0]) * base * exact) + 1
    if count <= 4096:
        sampling = Sampling(policy="rate", rate=rate, num_frames=count)
        wanted = sampling.pick(ticks, ticks[-1] + 1, base)
        pictures = iter([(number, (tick - 7) * base) for number, tick in enumerate(ticks)])
        assert [number for number, _ in on_display(pictures, exact, Notes())] == wanted


def test_a_clock_that_jumps_is_counted_anew() -> None:
    """A picture is not on display for hours because the clock says so, and what repeats is left out."""
    times = [0, 1, 2, 2 + MAX_GAP_S + 1, 2 + MAX_GAP_S + 2, 0, 0, 1]
    notes = Notes()
    pictures: Iterator[tuple[int, Fraction | None]] = iter([*enumerate(map(Fraction, times)), (8, None)])
    taken = [number for number, _ in on_display(pictures, Fraction(1), notes)]
    assert taken == [0, 1, 2, 3, 4, 5, 7]
    assert notes.warnings == [
        "the clock of the stream jumped, and pictures are counted anew from there",
        "pictures without a time were left out",
    ]


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_pictures_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write(path, moving(), "mpeg2video")
    frames, times, warnings = seen(path.read_bytes())
    np.testing.assert_array_equal(frames, decode_clip(path, FORM.every(20)).frames)
    assert [round(time_s or 0, 2) for time_s in times] == [round(i / 10, 2) for i in range(20)]
    assert warnings == []


def test_a_stream_that_begins_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path / "clip.ts", moving(40), "mpeg2video", options={"g": "5"})
    data = (tmp_path / "clip.ts").read_bytes()
    frames, _, _ = seen(data[188 * (len(data) // 376) + 61 :])
    assert 5 <= len(frames) < 40


def test_damage_is_told(tmp_path: Path) -> None:
    write(tmp_path / "clip.mkv", moving(), "ffv1")
    data = bytearray((tmp_path / "clip.mkv").read_bytes())
    data[len(data) // 2 :] = b"\x55" * 400
    frames, _, warnings = seen(bytes(data))
    assert 1 <= len(frames) < 20
    assert warnings


def test_what_is_no_live_video() -> None:
    for data in (b"no video " * 5000, b"", b"#EXTM3U\nhttp://127.0.0.1/x.ts\n"):
        with pytest.raises(NotAVideo):
            seen(data)


def test_pictures_past_the_bound_are_not_decoded(tmp_path: Path) -> None:
    """FFmpeg refuses them before the stream says how large they are, so it may be told in other words."""
    write(tmp_path / "clip.ts", np.zeros((2, 480, 640, 3), np.uint8), "mpeg2video")
    data = (tmp_path / "clip.ts").read_bytes()
    assert len(seen(data)[0]) == 2
    with pytest.raises((PictureTooLarge, UndecodableVideo)):
        seen(data, bounds=Bounds(max_pixels=100_000))


def test_length_is_no_bound_of_a_live_video(tmp_path: Path) -> None:
    write(tmp_path / "clip.mkv", moving(), "ffv1")
    frames, _, _ = seen((tmp_path / "clip.mkv").read_bytes(), bounds=Bounds(max_frames=3, max_duration_s=0.5))
    assert len(frames) == 20


def test_jpeg_pictures_as_a_video(tmp_path: Path) -> None:
    """The pixels are those that the same pictures have in another container, also where their sizes differ."""
    pictures = write(tmp_path / "a.mkv", moving(3), "mjpeg")
    other = write(tmp_path / "b.mkv", coloured_frames((9, 200, 90), 1, 90, 50), "mjpeg")
    path = tmp_path / "all.ivf"
    path.write_bytes(as_video([*pictures, *other]))
    clip = decode_clip(path, FORM.every(4))
    np.testing.assert_array_equal(clip.frames[:3], decode_clip(tmp_path / "a.mkv", FORM.every(3)).frames)
    np.testing.assert_array_equal(clip.frames[3:], decode_clip(tmp_path / "b.mkv", FORM.every(1)).frames)
    assert clip.info.times_s == (0.0, 1.0, 2.0, 3.0)

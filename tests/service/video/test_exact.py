"""What is decoded selectively is, byte for byte, what a full decode gives: on a grid of clips made here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from service.video import Sampling, decode, decode_clip, packets, probe, timeline
from service.video.bounds import UNBOUNDED
from tests.conftest import REAL_CLIPS
from tests.service.video.making import MATRICES, Recipe, make
from tests.service.video.plainly import Whole, decode_whole

HEIGHT, WIDTH = 24, 32

REAL_DATA = REAL_CLIPS.with_name("data")

X264 = {"preset": "veryfast", "crf": "28"}
X265 = {"preset": "ultrafast", "crf": "30", "x265-params": "log-level=none:pools=none:frame-threads=1"}
X265_CLOSED = X265 | {"x265-params": X265["x265-params"] + ":open-gop=0"}
X265_MORE = [
    X265 | {"x265-params": X265["x265-params"] + more}
    for more in (":temporal-layers=3", ":open-gop=0:radl=2", ":intra-refresh=1", ":b-pyramid=1:ref=4:weightb=1")
]
PYRAMID = X264 | {"x264-params": "b-pyramid=normal:ref=4:weightp=2"}
OPEN = X264 | {"x264-params": "open-gop=1:ref=3"}
OPEN_PYRAMID = X264 | {"x264-params": "open-gop=1:b-pyramid=normal:ref=4"}
REFRESH = X264 | {"x264-params": "intra-refresh=1"}
VPX = {"speed": "8", "lag-in-frames": "10", "auto-alt-ref": "1"}
SVT = {"preset": "12", "crf": "45", "svtav1-params": "lp=1"}


def grid() -> Iterator[Recipe]:
    """Codecs and containers by B-frames by group length; the rest goes round."""
    kinds = [
        *itertools.product(["mp4", "mkv", "ts", "flv", "mov"], ["libx264"], [X264], (0, 1, 3), (1, 5, 13, 250)),
        *itertools.product(["mp4", "mkv", "ts"], ["libx264"], [PYRAMID, OPEN, OPEN_PYRAMID], (3,), (7, 13)),
        *itertools.product(["mp4", "ts"], ["libx264"], [REFRESH], (0,), (13,)),
        *itertools.product(["avi"], ["libx264"], [X264], (0, 2), (13,)),
        *itertools.product(["mp4", "mkv", "ts"], ["libx265"], [X265, X265_CLOSED], (0, 3), (13,)),
        *itertools.product(["mp4", "ts"], ["libx265"], X265_MORE, (4,), (10,)),
        *itertools.product(["mp4", "avi", "mkv", "mov"], ["mpeg4"], [{}], (0, 1, 2), (1, 5, 12)),
        *itertools.product(["mpg", "ts", "mkv", "vob"], ["mpeg2video"], [{}], (0, 2), (1, 5, 12)),
        *itertools.product(
            ["mpg", "ts"], ["mpeg2video"], [{"flags": "cgop", "sc_threshold": "1000000000"}], (2,), (6,)
        ),
        *itertools.product(["mpg"], ["mpeg1video"], [{}], (0, 2), (1, 5, 12)),
        *itertools.product(["webm", "mkv"], ["libvpx"], [VPX], (0,), (5, 12, 60)),
        *itertools.product(["webm", "mp4"], ["libvpx-vp9"], [VPX], (0,), (5, 12, 60)),
        *itertools.product(["mp4", "mkv"], ["libsvtav1"], [SVT], (0,), (8, 16)),
        *itertools.product(["avi", "mov"], ["mjpeg"], [{}], (0,), (1,)),
        *itertools.product(["asf"], ["wmv2", "wmv1"], [{}], (0,), (6,)),
        ("flv", "flv", {}, 0, 6),
        ("mov", "prores_ks", {}, 0, 1),
        ("mkv", "ffv1", {}, 0, 6),
        ("avi", "huffyuv", {}, 0, 1),
        ("avi", "msmpeg4v2", {}, 0, 6),
    ]
    formats = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p"}
    rates = itertools.cycle([Fraction(25), Fraction(30_000, 1001), Fraction(15), Fraction(24)])
    matrices = itertools.cycle(MATRICES)
    spaces = itertools.cycle([2, 1, 5, 9, 6])
    for number, (suffix, codec, options, bf, gop) in enumerate(kinds):
        plain = Recipe(suffix, codec, options, bf=bf, gop=gop, rate=next(rates), pix_fmt=formats.get(codec, "yuv420p"))
        if codec in ("mpeg4", "mpeg1video", "mpeg2video"):  # which know few rates
            plain = dataclasses.replace(plain, rate=Fraction(25))
        timed = codec not in ("mpeg1video", "mpeg2video") and suffix in ("mp4", "mov", "mkv", "webm", "ts")
        variants: dict[str, object] = {}
        if timed:
            variants |= {"start": number % 3 * 7, "varies": number % 4 == 1}
        if suffix in ("mp4", "mov") and codec != "mjpeg":
            variants |= {"matrix": next(matrices)}
        if codec in ("libx264", "libx265"):
            variants |= {"colorspace": next(spaces), "full_range": number % 5 == 2}
        yield dataclasses.replace(plain, **variants)
        if number % 2 and suffix in ("ts", "mkv", "mpg", "avi", "webm", "flv"):
            yield dataclasses.replace(plain, truncated=0.4 + 0.1 * (number % 6))
        if suffix in ("ts", "mkv") and gop in (5, 12, 13):
            yield dataclasses.replace(plain, drop=3, num_frames=56)


GRID = list(grid())

SAMPLINGS = [
    Sampling(num_frames=5, height=HEIGHT, width=WIDTH),
    Sampling(num_frames=17, height=HEIGHT, width=WIDTH),
    Sampling(policy="rate", rate=4.5, num_frames=6, height=HEIGHT, width=WIDTH),
    Sampling(policy="first", num_frames=3, height=HEIGHT, width=WIDTH),
    Sampling(policy="windows", window_length=2, window_stride=11, num_frames=6, height=HEIGHT, width=WIDTH),
]


def expected(whole: Whole, sampling: Sampling) -> list[int]:
    """The pictures that a sampling's rule names."""
    count = sampling.num_frames
    if sampling.policy == "rate":
        return whole.at_rate(Fraction(9, 2), count)
    if sampling.policy == "first":
        return whole.packets_at(list(range(count)))
    if sampling.policy == "windows":
        return whole.packets_at([0, 1, 11, 12, 22, 23])
    return whole.uniform(count)


def compare(path: Path, matrix: str = "0", threads: int = 1) -> None:
    whole = decode_whole(path, MATRICES[matrix])
    for sampling in SAMPLINGS:
        clip = decode_clip(path, sampling, threads=threads)
        chosen = expected(whole, sampling)
        first = whole.packet_times[0]
        assert clip.info.times_s == tuple(float((whole.times[i] - first) * whole.base) for i in chosen), sampling
        assert clip.info.pts_s == tuple(float(whole.times[i] * whole.base) for i in chosen), sampling
        assert clip.info.exact
        for place, index in enumerate(chosen):
            pixels = whole.pixels(index, HEIGHT, WIDTH)
            assert np.array_equal(clip.frames[place], pixels), f"frame {place} of {sampling.policy}, picture {index}"


@pytest.fixture
def full_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a clip is decoded from its first packet on."""
    calls: list[str] = []
    everything = decode._Taker.all

    def noted(self: decode._Taker, *arguments: object) -> object:
        calls.append(self.timeline.doubt)
        return everything(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decode._Taker, "all", noted)
    return calls


def is_known(recipe: Recipe) -> bool:
    """Whether nothing but what is needed should be decoded."""
    unread = recipe.codec in ("wmv1", "wmv2", "flv", "ffv1", "msmpeg4v2")
    unordered = recipe.suffix == "avi" and recipe.bf > 0
    refreshed = "intra-refresh" in str(recipe.options)
    doubled = recipe.suffix in ("mpg", "vob") and recipe.gop == 1  # FFmpeg's muxer gives two pictures one time
    return not (unread or unordered or refreshed or doubled or recipe.drop or recipe.truncated < 1)


@pytest.mark.parametrize("recipe", GRID, ids=str)
def test_same_bytes_as_a_full_decode(recipe: Recipe, tmp_path: Path, full_decodes: list[str]) -> None:
    path = tmp_path / f"clip.{recipe.suffix}"
    make(path, recipe)
    compare(path, recipe.matrix)
    if is_known(recipe):
        assert full_decodes == [], "nothing was left out"


@pytest.mark.parametrize("recipe", [recipe for recipe in GRID if is_known(recipe)][::2], ids=str)
def test_same_bytes_from_packets_that_are_sought(
    recipe: Recipe, tmp_path: Path, full_decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a file too large to be held in memory, and long enough to skip most of it."""
    monkeypatch.setattr(timeline, "HELD_BYTES", 0)
    monkeypatch.setattr(packets, "_FAR", 1)
    path = tmp_path / f"clip.{recipe.suffix}"
    make(path, recipe)
    compare(path, recipe.matrix)
    assert full_decodes == [], "nothing was left out"


@pytest.mark.parametrize("recipe", [recipe for recipe in GRID if recipe.bf > 0 or "vp" in recipe.codec][::4], ids=str)
def test_same_bytes_from_several_threads(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "THREADS_PAY", 0)
    path = tmp_path / f"clip.{recipe.suffix}"
    make(path, recipe)
    compare(path, recipe.matrix, threads=3)


@pytest.mark.parametrize(("pays", "num_threads"), [(0, 3), (1 << 40, 1)])
def test_threads_only_where_they_pay(
    pays: int, num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "THREADS_PAY", pays)
    path = tmp_path / f"clip.{GRID[0].suffix}"
    make(path, GRID[0])
    with probe.open_video(path, UNBOUNDED) as container:
        stream = probe.video_stream(container, UNBOUNDED, threads=3)
        timeline.read_timeline(container, stream, UNBOUNDED, timeline.Notes())
        assert stream.codec_context.thread_count == num_threads


def test_same_bytes_of_real_clips(real_clip: Path) -> None:
    compare(real_clip)


DATA = sorted(REAL_DATA.glob("fight_surv/*/*.mp4"))[::40] + sorted(REAL_DATA.glob("ut_interaction/*/*.avi"))[::30]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason=f"no videos in {REAL_DATA}")
@pytest.mark.parametrize("path", DATA, ids=lambda path: path.name)
def test_same_bytes_of_real_data(path: Path) -> None:
    compare(path)


@pytest.mark.parametrize(
    ("matrix", "rotation", "mirrored"),
    [
        ("0", 0, False),
        ("90", 270, False),
        ("180", 180, False),
        ("270", 90, False),
        ("mirrored", 0, True),
        ("flipped", 180, True),
    ],
)
def test_turns_and_mirrors_are_said(matrix: str, rotation: int, mirrored: bool, tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", Recipe("mp4", "libx264", X264, matrix=matrix))
    info = decode_clip(tmp_path / "a.mp4", SAMPLINGS[0]).info
    assert (info.rotation, info.mirrored) == (rotation, mirrored)
    assert (info.width, info.height) == ((48, 64) if rotation % 180 else (64, 48))
    assert len(info.warnings) == (matrix != "0")

"""Timelines: which frames each window sees, against a plain decode of every picture, and what is held meanwhile."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidParameter, TooManyWindows
from service.video import Sampling, assembly, decode_clip, decode_windows, packets, timeline, windows
from service.video.assembly import WindowInfo
from service.video.windows import Windowing
from tests.service.video.making import MATRICES, Recipe, make
from tests.service.video.plainly import Whole, decode_whole

HEIGHT, WIDTH = 24, 32
UNIFORM = Sampling(num_frames=5, height=HEIGHT, width=WIDTH)
X264 = {"preset": "veryfast", "crf": "28"}
RECIPES = [
    Recipe("mp4", "libx264", X264, bf=2, gop=10, num_frames=100),
    Recipe("mkv", "libx264", X264, bf=1, gop=12, num_frames=90, varies=True, start=7),
    Recipe("mp4", "libx264", X264, bf=2, gop=250, num_frames=60, matrix="90"),
    Recipe("webm", "libvpx", {"deadline": "realtime"}, num_frames=60, rate=Fraction(30_000, 1001)),
    Recipe("ts", "mpeg2video", bf=2, num_frames=80),
    Recipe("avi", "mpeg4", bf=1, num_frames=80),
    Recipe("ts", "libx264", X264, bf=2, gop=10, num_frames=90, drop=4),
]


def cut(path: Path, windowing: Windowing, sampling: Sampling = UNIFORM) -> list[tuple[WindowInfo, np.ndarray]]:
    """Every window with its clip."""
    out = np.zeros(sampling.clip_shape, np.uint8)
    found: list[tuple[WindowInfo, np.ndarray]] = []
    decode_windows(path, sampling, windowing, lambda window: found.append((window, out.copy())), out)
    return found


def every(window_s: float, stride_s: float | None = None, max_windows: int = 1000) -> Windowing:
    return Windowing(window_s=window_s, stride_s=stride_s or window_s, max_windows=max_windows)


def borders(span: Fraction, window: Fraction, stride: Fraction) -> list[tuple[Fraction, Fraction]]:
    """By the rule as people say it: one after the other, until one would reach past the end and is moved back."""
    if span <= window:
        return [(Fraction(0), span)]
    found, start = [], Fraction(0)
    while start + window < span:
        found.append((start, start + window))
        start += stride
    return [*found, (span - window, span)]


def check(path: Path, window: str, stride: str, matrix: str = "0") -> int:
    whole = decode_whole(path, MATRICES[matrix])
    first, base = whole.packet_times[0], whole.base
    expected = borders((whole.end - first) * base, Fraction(window), Fraction(stride))
    found = cut(path, every(float(window), float(stride)))
    assert len(found) == len(expected)
    for (info, frames), (start, end) in zip(found, expected, strict=True):
        assert info.from_s == pytest.approx(float(start), abs=float(base))
        assert info.to_s == pytest.approx(float(end), abs=float(base))
        chosen = middles(whole, first + int(start / base), first + int(end / base))
        assert info.pts_s == tuple(float(whole.times[i] * base) for i in chosen)
        assert info.times_s == tuple(float((whole.times[i] - first) * base) for i in chosen)
        for place, index in enumerate(chosen):
            assert np.array_equal(frames[place], whole.pixels(index, HEIGHT, WIDTH)), f"{info.from_s} s, frame {place}"
    return len(found)


def middles(whole: Whole, start: int, end: int) -> list[int]:
    """What is on display at the middle of each part of a window."""
    count = UNIFORM.num_frames
    return [whole.shown_at(start + Fraction((2 * i + 1) * (end - start), 2 * count)) for i in range(count)]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_each_window_is_what_a_clip_cut_out_would_be(
    recipe: Recipe, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not held:
        monkeypatch.setattr(timeline, "HELD_BYTES", 0)
        monkeypatch.setattr(packets, "_FAR", 1)
    path = tmp_path / f"a.{recipe.suffix}"
    make(path, recipe)
    assert check(path, "1", "1", recipe.matrix) >= 2
    assert check(path, "0.9", "0.3", recipe.matrix) >= 4
    assert check(path, "60", "2", recipe.matrix) == 1


def test_real_clips(real_clip: Path) -> None:
    whole = decode_whole(real_clip)
    span = float((whole.end - whole.packet_times[0]) * whole.base)
    found = cut(real_clip, every(span / 3, span / 6))
    assert len(found) in (5, 6)
    first = whole.packet_times[0]
    for info, _ in found:
        # The borders themselves are tested above; here every frame must be one of the window's.
        times = [float((time - first) * whole.base) for time in whole.times]
        shown = max((time for time in times if time <= info.from_s), default=0.0)
        assert all(shown <= time_s < info.to_s for time_s in info.times_s)
    assert found[-1][0].to_s == pytest.approx(span)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(policy="rate", rate=5, num_frames=4, height=HEIGHT, width=WIDTH),
        Sampling(policy="first", num_frames=3, height=HEIGHT, width=WIDTH),
        Sampling(policy="windows", window_length=2, window_stride=5, num_frames=4, height=HEIGHT, width=WIDTH),
    ],
    ids=lambda sampling: sampling.policy,
)
def test_other_policies_count_from_the_window_s_start(sampling: Sampling, tmp_path: Path) -> None:
    """25 pictures a second, windows of 1 s: the second begins with picture 25."""
    make(tmp_path / "a.mp4", RECIPES[0])
    wanted = {"rate": [0, 5, 10, 15], "first": [0, 1, 2], "windows": [0, 1, 5, 6]}[sampling.policy]
    for number, (info, _) in enumerate(cut(tmp_path / "a.mp4", every(1), sampling)):
        assert [round(25 * time_s) for time_s in info.times_s] == [25 * number + index for index in wanted]


def test_a_short_video_is_one_window_and_the_clip_that_it_is(tmp_path: Path) -> None:
    for recipe in RECIPES:
        path = tmp_path / f"a.{recipe.suffix}"
        make(path, recipe)
        ((info, frames),) = cut(path, every(3600))
        clip = decode_clip(path, UNIFORM)
        assert np.array_equal(frames, clip.frames)
        assert (info.times_s, info.pts_s) == (clip.info.times_s, clip.info.pts_s)
        assert (info.from_s, info.to_s) == (0.0, pytest.approx(clip.info.duration_s))


def test_a_picture_of_several_windows_is_resized_once_and_held_no_longer_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.mp4", Recipe("mp4", "libx264", X264, bf=2, gop=10, num_frames=400))
    resized: list[int] = []
    held: list[int] = []
    resize = assembly.Resizer.__call__
    complete = assembly.Windows._complete

    def noted(self: assembly.Resizer, *arguments: object) -> None:
        resized.append(1)
        resize(self, *arguments)  # type: ignore[arg-type]

    def counted(self: assembly.Windows, window: windows.Window) -> None:
        held.append(len(self._held))
        complete(self, window)
        if self._next == len(self._windows):
            assert not self._held

    monkeypatch.setattr(assembly.Resizer, "__call__", noted)
    monkeypatch.setattr(assembly.Windows, "_complete", counted)
    found = cut(tmp_path / "a.mp4", every(2, 0.4))
    used = {time_s for info, _ in found for time_s in info.times_s}
    assert len(found) == 36
    assert len(resized) == len(used) < 36 * UNIFORM.num_frames
    assert max(held) <= 4 * UNIFORM.num_frames
    assert max(held) <= windows._most_held(
        every(2, 0.4).cut(UNIFORM, [512 * i for i in range(400)], 512 * 400, Fraction(1, 12800))
    )


def test_windows_that_overlap_too_much_are_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.mp4", RECIPES[0])
    monkeypatch.setattr(windows, "HELD_BYTES", 20 * HEIGHT * WIDTH * 3)
    assert len(cut(tmp_path / "a.mp4", every(2, 1))) == 3
    with pytest.raises(InvalidParameter, match=r"overlap less, got 2 s every 0\.04 s"):
        cut(tmp_path / "a.mp4", every(2, 0.04))


def test_too_many_windows(tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", RECIPES[0])
    assert len(cut(tmp_path / "a.mp4", every(1, 0.5, max_windows=7))) == 7
    with pytest.raises(TooManyWindows, match=r"at most 6 windows, got 7: 4\.0 s, one every 0\.5 s"):
        cut(tmp_path / "a.mp4", every(1, 0.5, max_windows=6))


def test_what_turns_out_broken_on_the_way_goes_on_from_a_full_decode(tmp_path: Path) -> None:
    """Windows before the damage were handed over already; each comes once, in order, and none is missing."""
    make(tmp_path / "a.mp4", RECIPES[0])
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "b.mp4").write_bytes(data)
    plain, broken = cut(tmp_path / "a.mp4", every(0.5)), cut(tmp_path / "b.mp4", every(0.5))
    assert [info.from_s for info, _ in broken] == [info.from_s for info, _ in plain]
    same = [np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(plain, broken, strict=True)]
    assert same[0]
    assert not all(same)


def test_a_cut_covers_the_video_without_a_gap() -> None:
    for num, window_s, stride_s in itertools.product((1, 2, 50, 251), (0.05, 1.0, 3.0), (0.05, 0.7, 3.0)):
        if stride_s <= window_s:
            ticks = [40 * i for i in range(num)]
            found = every(window_s, stride_s).cut(UNIFORM, ticks, 40 * num, Fraction(1, 1000))
            assert (found[0].start, found[-1].end) == (0, 40 * num)
            assert all(after.start <= before.end for before, after in itertools.pairwise(found))
            assert len({window.end - window.start for window in found}) == 1

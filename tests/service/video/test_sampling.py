"""Which frames each policy names, and what a sampling must say."""

from __future__ import annotations

import json
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.video import Sampling, decode_clip
from tests.service.video.making import Recipe, make

BASE = Fraction(1, 1000)
TICKS = [0, 40, 80, 120, 200, 240, 280, 320, 360, 400]
END = 440


def pick(**arguments: Any) -> list[int]:
    return Sampling(**arguments).pick(TICKS, END, BASE)


def test_first() -> None:
    assert pick(policy="first", num_frames=4) == [0, 1, 2, 3]
    assert pick(policy="first", num_frames=12) == [*range(10), 9, 9]


def test_windows() -> None:
    assert pick(policy="windows", window_length=2, window_stride=4, num_frames=6) == [0, 1, 4, 5, 8, 9]
    assert pick(policy="windows", window_length=3, window_stride=2, num_frames=6) == [0, 1, 2, 2, 3, 4]
    assert pick(policy="windows", window_length=1, window_stride=6, num_frames=4) == [0, 6, 9, 9]


def test_rate_goes_by_time() -> None:
    assert pick(policy="rate", rate=25, num_frames=6) == [0, 1, 2, 3, 3, 4]
    assert pick(policy="rate", rate=5, num_frames=4) == [0, 4, 9, 9]


@given(
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    start=st.integers(-9000, 9000),
    count=st.integers(1, 40),
)
def test_uniform_takes_what_is_on_display_in_the_middle_of_each_part(steps: list[int], start: int, count: int) -> None:
    ticks = [start + sum(steps[:i]) for i in range(len(steps))]
    end = start + sum(steps)
    middles = [start + Fraction((2 * i + 1) * (end - start), 2 * count) for i in range(count)]
    assert Sampling(num_frames=count).pick(ticks, end, BASE) == [bisect_right(ticks, time) - 1 for time in middles]


@given(rate=st.floats(0.01, 1000), base=st.fractions(Fraction(1, 100_000), 1, max_denominator=100_000))
def test_rate_keeps_its_pace(rate: float, base: Fraction) -> None:
    ticks = list(range(200))
    exact = [i / (Fraction(rate).limit_denominator(100_000) * base) for i in range(30)]
    expected = [min(int(time), 199) for time in exact]
    assert Sampling(policy="rate", rate=rate, num_frames=30).pick(ticks, 200, base) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "rate"}, "expected rate, got none"),
        ({"policy": "windows", "window_length": 3}, "expected window_length, window_stride, got window_length"),
        ({"policy": "uniform", "rate": 2.0}, "expected no parameters, got rate"),
        ({"policy": "first", "window_stride": 2}, "expected no parameters, got window_stride"),
        ({"policy": "rate", "rate": 0}, "greater than 0"),
        ({"policy": "last"}, "Input should be"),
    ],
)
def test_a_policy_has_its_parameters_and_no_others(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sampling(**arguments)


def test_what_older_model_files_say_is_understood() -> None:
    older = {"policy": "uniform", "num_frames": 8, "height": 24, "width": 32, "resize_filter": "bilinear"}
    sampling = Sampling.model_validate_json(json.dumps(older))
    assert (sampling.policy, sampling.num_frames, sampling.rate, sampling.window_length) == ("uniform", 8, None, None)


def test_it_survives_json() -> None:
    for sampling in (Sampling(), Sampling(policy="windows", window_length=2, window_stride=5, num_frames=4)):
        assert Sampling.model_validate_json(sampling.model_dump_json()) == sampling


# ---- keyframes


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    options = {"preset": "veryfast", "crf": "20", "sc_threshold": "0"}
    make(path, Recipe("mp4", "libx264", options, num_frames=60, bf=2, gop=15))
    return path


def test_keyframes_are_the_ones_before_and_are_said_to_be_inexact(grouped: Path) -> None:
    clip = decode_clip(grouped, Sampling(policy="keyframes", num_frames=6, height=24, width=32))
    assert not clip.info.exact
    assert clip.info.times_s == (0.0, 0.6, 0.6, 1.2, 1.8, 1.8)
    exact = decode_clip(
        grouped, Sampling(policy="windows", window_length=1, window_stride=15, num_frames=4, height=24, width=32)
    )
    assert exact.info.exact
    assert np.array_equal(clip.frames, exact.frames[[0, 1, 1, 2, 3, 3]])


def test_without_known_keyframes_the_answer_is_exact(tmp_path: Path) -> None:
    make(tmp_path / "a.flv", Recipe("flv", "flv"))
    clip = decode_clip(tmp_path / "a.flv", Sampling(policy="keyframes", num_frames=5, height=24, width=32))
    assert clip.info.exact
    assert np.array_equal(
        clip.frames, decode_clip(tmp_path / "a.flv", Sampling(num_frames=5, height=24, width=32)).frames
    )

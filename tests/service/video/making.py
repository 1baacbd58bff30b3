"""Clips of every kind, made with PyAV, for tests of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet

SIZE = 64, 48
"""Width and height of most pictures."""

ONE = 1 << 16
MATRICES = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "mirrored 90": (0, 1, 1, 0),
    "mirrored 270": (0, -1, -1, 0),
}
"""a, b, c, d of the display matrix: the pixel x, y is shown at a x + c y, b x + d y."""


@dataclass(frozen=True)
class Recipe:
    """A clip to make."""

    suffix: str
    codec: str
    options: Mapping[str, str] = field(default_factory=dict)
    num_frames: int = 40
    size: tuple[int, int] = SIZE
    pix_fmt: str = "yuv420p"
    bf: int = 0
    gop: int = 12
    rate: Fraction = Fraction(25)
    varies: bool = False
    """Whether the time between two frames differs."""
    start: int = 0
    """Of the first frame, in frames."""
    matrix: str = "0"
    full_range: bool = False
    colorspace: int = 2
    """AVColorSpace: unspecified."""
    drop: int = 0
    """Packets left out at the start, so that the stream begins in the middle of a group of pictures."""
    truncated: float = 1.0
    """Share of the file that is kept."""

    def __str__(self) -> str:
        parts = [self.codec, self.suffix, f"bf{self.bf}", f"g{self.gop}", f"{float(self.rate):.4g}fps"]
        parts += [f"{name}{value}" for name, value in self.options.items() if name not in ("preset", "crf", "speed")]
        parts += [name for name in ("varies", "full_range") if getattr(self, name)]
        parts += [f"{name}{getattr(self, name)}" for name in ("start", "drop") if getattr(self, name)]
        parts += [self.matrix] if self.matrix != "0" else []
        parts += [f"cut{self.truncated}"] if self.truncated < 1 else []
        parts += [self.pix_fmt] if self.pix_fmt != "yuv420p" else []
        return " ".join(parts).replace(" ", "_")


def scenery(num_frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth noise that moves, with squares that move otherwise: uint8 [time, height, width, 3]."""
    rng = np.random.default_rng(0)
    width, height = size
    coarse = rng.integers(30, 226, (height // 4 + 24, width // 4 + 24, 3)).astype(np.uint8)
    ground = coarse.repeat(4, 0).repeat(4, 1)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        x, y = (i * 3) % 80, (i * 2) % 80
        frames[i] = ground[y : y + height, x : x + width]
        top, left = 5 * i % (height - 12), 7 * i % (width - 12)
        frames[i, top : top + 12, left : left + 12] = rng.integers(0, 256, 3)
    return frames


def make(path: Path, recipe: Recipe) -> None:
    """Encode, mux, and break as the recipe says."""
    base = 1 / recipe.rate / 4
    width, height = recipe.size
    with av.open(str(path), "w") as output:
        options = {"g": str(recipe.gop), "bf": str(recipe.bf), **recipe.options}
        stream = output.add_stream(recipe.codec, rate=recipe.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, recipe.pix_fmt
        context = stream.codec_context
        context.thread_count = 1
        if recipe.varies:
            stream.time_base = context.time_base = base
        context.colorspace = recipe.colorspace
        if recipe.full_range:
            context.color_range = 2
        if recipe.matrix != "0":
            a, b, c, d = MATRICES[recipe.matrix]
            stream.set_display_matrix([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30])
        packets: list[Packet] = []
        for i, frame in enumerate(scenery(recipe.num_frames, recipe.size)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=recipe.pix_fmt, threads=1)
            picture.time_base = base if recipe.varies else 1 / recipe.rate
            picture.pts = 4 * (recipe.start + i) + i * i % 3 if recipe.varies else recipe.start + i
            packets += stream.encode(picture)
        packets += stream.encode(None)
        for packet in packets[recipe.drop :]:
            output.mux(packet)
    if recipe.truncated < 1:
        data = path.read_bytes()
        path.write_bytes(data[: int(recipe.truncated * len(data))])


def remux(
    source: Path,
    target: Path,
    change: Callable[[list[Packet]], Sequence[Packet]],
    options: Mapping[str, str] | None = None,
) -> None:
    """Copy a file's video packets, changed."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=dict(options or {})) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in change([packet for packet in container.demux(video=0) if packet.size]):
            packet.stream = stream
            output.mux(packet)


VOP = b"\0\0\1\xb6"
NOT_CODED = VOP + b"\x50\x4f"
"""A P-VOP with vop_coded 0, of a stream whose times have 5 bits."""
DIVX_PACKED = b"\0\0\1\xb2DivX503b1393p"
"""User data by which decoders know a packed stream."""


def pack_b_frames(packets: list[Packet]) -> list[Packet]:
    """MPEG-4 as XviD puts it into AVI, which has no times for B-frames: each shares a packet with the picture that is
    decoded before it and shown after it, and a picture that is not coded takes its place. For `remux`, of bf 1."""
    packed = [bytes(packet) for packet in packets]
    for number, data in enumerate(packed):
        head, vop, picture = data.partition(VOP)
        if head:
            head = head.split(b"\0\0\1\xb2")[0] + DIVX_PACKED
        packed[number] = head + vop + picture
        if picture[0] >> 6 == 2:
            packed[number - 1 : number + 1] = packed[number - 1] + packed[number], NOT_CODED
    for number, packet in enumerate(packets):
        packets[number] = Packet(packed[number])
        packets[number].dts = packets[number].pts = packet.dts
        packets[number].time_base, packets[number].is_keyframe = packet.time_base, packet.is_keyframe
    return packets

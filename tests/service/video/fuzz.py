"""Broken videos without end: clips of every container, mutated, through the decoder processes.

`python -m tests.service.video.fuzz --files 20000` prints what became of them and exits with 1 where anything is not as
it should be: an outcome that is neither a clip nor a clean error within the deadline, another request disturbed, a
process, file, descriptor or shared memory left behind, memory that grows. `--keep FOLDER` keeps the files that crash
or hang a decoder.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np

from service.errors import DeadlineExceeded, DecoderCrashed, RequestError
from service.video import Sampling, decode_clip, process
from service.video.child import Policy
from service.video.process import _usage
from service.video.workers import DecodePool
from ttmodels.data.encode import PIXEL_FORMATS

SAMPLING = Sampling(num_frames=4, height=24, width=32)
GRACE_S = 1.0
"""How much later than the deadline an answer may come on a machine that is busy with this."""
CONTROL_EVERY = 20
SETTLED = 500
"""Files after which memory is measured first: by then every codec has been loaded."""

FORMS = [
    "mp4 libx264", "mov mjpeg", "mov libx264", "mov prores", "3gp h263", "mp4 libx265", "mp4 mpeg4", "mkv libx264",
    "mkv libvpx-vp9", "mkv ffv1", "webm libvpx", "webm libsvtav1", "avi mpeg4", "avi mjpeg", "avi libx264",
    "avi huffyuv", "avi msmpeg4", "mpg mpeg2video", "mpg mpeg1video", "ts libx264", "ts mpeg2video", "flv flv",
    "flv libx264", "gif gif", "wmv wmv2", "wmv wmv1", "y4m rawvideo", "m2v mpeg2video", "h264 libx264",
    "hevc libx265", "ivf libvpx", "obu libsvtav1", "ogg libvpx", "mov png", "mov qtrle",
]  # fmt: skip
"""Suffix and encoder; those that this build of PyAV lacks are left out."""

_MORE_FORMATS = {"prores": "yuv422p10le", "huffyuv": "yuv422p", "png": "rgb24", "qtrle": "rgb24"}
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_NAMES = (b"moov", b"trak", b"stbl", b"stsz", b"stco", b"mdat", b"free", b"avcC", b"edts", b"RIFF", b"LIST", b"strf")
_NAMES += (b"idx1", b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xb3", b"\x00\x00\x00\x01", b"\x9d\x01\x2a", b"\xff\xd8\xff")


def make_seeds(real: Path | None = None, *, real_bytes: int = 120_000) -> dict[str, bytes]:
    """A small clip of every form, and the beginnings of the real clips in the folder."""
    seeds = {}
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            suffix, codec = form.split()
            path = Path(folder, f"a.{suffix}")
            with contextlib.suppress(av.error.FFmpegError, ValueError):
                _encode(path, codec)
                seeds[form] = path.read_bytes()
    clips = sorted(real.glob("*")) if real is not None else []
    seeds |= {clip.name: clip.read_bytes()[:real_bytes] for clip in clips if clip.suffix != ".md"}
    return seeds


def _encode(path: Path, codec: str) -> None:
    height, width = (96, 128) if codec == "h263" else (48, 64)
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height = width, height
        stream.pix_fmt = (PIXEL_FORMATS | _MORE_FORMATS).get(codec, "yuv420p")
        if codec.startswith("libx26"):
            stream.options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * i, axis=1), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        output.mux(stream.encode(None))


def mutate(rng: np.random.Generator, seeds: list[bytes]) -> bytes:
    """One of the seeds, changed in one to three ways."""
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        if size < 32:
            break
        at = int(rng.integers(size - 8))
        if rng.random() < 0.5:  # headers decide more than pictures do
            at = int(rng.integers(min(size - 8, 1024))) if rng.random() < 0.6 else max(0, size - 8 - at % 1024)
        length = int(rng.integers(1, max(2, size // 4)))
        match rng.integers(8):
            case 0:
                for where in rng.integers(0, size, rng.integers(1, 64)):
                    data[where] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at + 8 :]
            case 2:
                other = seeds[rng.integers(len(seeds))]
                start = int(rng.integers(len(other)))
                data[at : at + length] = other[start : start + length]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                value, order = _EXTREMES[rng.integers(len(_EXTREMES))], ("big", "little")[rng.integers(2)]
                data[at : at + 4] = value.to_bytes(4, order)
            case 6:
                name = _NAMES[rng.integers(len(_NAMES))]
                data[at : at + len(name)] = name
            case _:
                data[at : at + length] = rng.bytes(1) * min(length, size - at)
    return bytes(data)


@dataclass
class Report:
    """What became of the files, and what is wrong with it."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    controls: int = 0
    slowest_control_s: float = 0.0
    replaced: int = 0
    recycled: int = 0
    rss_mib: dict[int, list[int]] = field(default_factory=dict)
    """Files done -> of this process, and the mean of the decoders."""
    duration_s: float = 0.0

    def __str__(self) -> str:
        return json.dumps(vars(self), indent=1)


def fuzz(
    num_files: int,
    seeds: list[bytes],
    *,
    first: int = 0,
    num_workers: int = 2,
    deadline_s: float = 10.0,
    policy: Policy | None = None,
    keep: Path | None = None,
) -> Report:
    """Decode files number `first` and following; each follows from the seeds and its number alone.

    Args:
        keep: folder for the files that crash or hang a decoder.
    """
    pool = DecodePool(1, SAMPLING.clip_bytes, policy)
    asyncio.run(_start_and_close(pool))  # the server that decoders are forked from stays
    with tempfile.TemporaryDirectory() as folder:
        before = _belongings()
        began = time.monotonic()
        fuzzer = _Fuzzer(Path(folder), seeds, deadline_s, keep)
        slots: set[str] = set()

        def noted(**arguments: Any) -> SharedMemory:
            slot = SharedMemory(**arguments)
            slots.add(slot.name)
            return slot

        with mock.patch.object(process, "SharedMemory", noted):
            asyncio.run(fuzzer.run(iter(range(first, first + num_files)), num_workers, policy))
        report = fuzzer.report
        report.duration_s = round(time.monotonic() - began, 1)
        if left := list(Path(folder).iterdir()):
            report.faults.append(f"files were left behind: {left}")
        if held := [name for name in slots if Path("/dev/shm", name).exists()]:
            report.faults.append(f"shared memory was left behind: {held}")
        for kind, count in _belongings().items():
            if count > before[kind]:
                report.faults.append(f"{kind}: {before[kind]} before, {count} after")
    return report


async def _start_and_close(pool: DecodePool) -> None:
    await pool.start()
    await pool.close()


class _Fuzzer:
    def __init__(self, folder: Path, seeds: list[bytes], deadline_s: float, keep: Path | None) -> None:
        self.report = Report()
        self.folder, self.seeds, self.deadline_s, self.keep = folder, seeds, deadline_s, keep
        with self.spooled(seeds[0], "control") as control:
            self.expected = decode_clip(control, SAMPLING).frames
        self.num_done = 0

    @contextlib.contextmanager
    def spooled(self, data: bytes, name: str) -> Iterator[Path]:
        path = self.folder / name
        path.write_bytes(data)
        try:
            yield path
        finally:
            path.unlink()

    async def run(self, numbers: Iterator[int], num_workers: int, policy: Policy | None) -> None:
        pool = DecodePool(num_workers, SAMPLING.clip_bytes, policy)
        await pool.start()
        try:
            # One more than there are decoders, so that they never idle.
            await asyncio.gather(*(self.client(pool, numbers, str(i)) for i in range(num_workers + 1)))
            self.report.replaced, self.report.recycled = pool.num_replaced, pool.num_recycled
        finally:
            await pool.close()

    async def client(self, pool: DecodePool, numbers: Iterator[int], name: str) -> None:
        for number in numbers:
            await self.broken(pool, number, mutate(np.random.default_rng(number), self.seeds), name)
            self.num_done += 1
            if self.num_done % SETTLED == 0:
                self.report.rss_mib[self.num_done] = _memory(pool)
            if self.num_done % CONTROL_EVERY == 0:
                await self.control(pool, name)

    async def broken(self, pool: DecodePool, number: int, data: bytes, name: str) -> None:
        """A broken file gets a clip or a clean error, in time."""
        report = self.report
        asked = time.monotonic()
        with self.spooled(data, name) as path:
            try:
                decoded = await pool.decode(path, SAMPLING, asked + self.deadline_s)
                outcome = "ok"
                if decoded.result.frames.shape != SAMPLING.clip_shape:
                    report.faults.append(f"file {number}: shape {decoded.result.frames.shape}")
            except RequestError as error:
                outcome = error.code
                if str(self.folder) in error.detail or "fails with" in error.detail:
                    report.faults.append(f"file {number}: {error.detail}")
            except Exception as error:
                outcome = "fault"
                report.faults.append(f"file {number}: {error!r}")
        spent_s = time.monotonic() - asked
        report.outcomes[outcome] += 1
        report.slowest_s = max(report.slowest_s, round(spent_s, 3))
        if spent_s > self.deadline_s + GRACE_S:
            report.faults.append(f"file {number}: {spent_s:.1f} s, {self.deadline_s} were allowed")
        if self.keep is not None and outcome in (DecoderCrashed.code, DeadlineExceeded.code):
            (self.keep / f"{number}.{outcome}").write_bytes(data)

    async def control(self, pool: DecodePool, name: str) -> None:
        """A good clip in between gets its answer, and the right one."""
        report = self.report
        asked = time.monotonic()
        with self.spooled(self.seeds[0], name) as path:
            try:
                decoded = await pool.decode(path, SAMPLING, asked + 2 * self.deadline_s)
                if not np.array_equal(decoded.result.frames, self.expected):
                    report.faults.append(f"control {report.controls}: other pixels")
            except RequestError as error:
                report.faults.append(f"control {report.controls}: {error.code}")
        report.controls += 1
        report.slowest_control_s = max(report.slowest_control_s, round(time.monotonic() - asked, 3))


def _memory(pool: DecodePool) -> list[int]:
    decoders = [_usage(pid)[0] for pid in pool.pids]
    return [_usage(os.getpid())[0] >> 20, sum(decoders) // max(1, len(decoders)) >> 20]


def _belongings() -> dict[str, int]:
    """What this process holds, where there is a /proc."""
    return {
        "descriptors": sum(1 for _ in _entries("/proc/self/fd")),
        "decoder processes": sum(1 for entry in _entries("/proc") if _is_decoder(entry)),
    }


def _entries(folder: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path(folder).iterdir()


def _is_decoder(entry: Path) -> bool:
    """Whether it is a process that descends from this one's fork server."""
    try:
        fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        return entry.name.isdigit() and int(fields[1]) in _fork_servers()
    except (OSError, IndexError, ValueError):
        return False


def _fork_servers() -> set[int]:
    """Child processes of this one."""
    children = set()
    for task in _entries("/proc/self/task"):
        with contextlib.suppress(OSError):
            children |= {int(pid) for pid in (task / "children").read_text().split()}
    return children


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file; each follows from its number")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deadline-s", type=float, default=10.0)
    parser.add_argument("--clips", type=Path, help="folder of real clips to mutate too")
    parser.add_argument("--keep", type=Path, help="folder for files that crash or hang a decoder")
    parser.add_argument("--sandbox", choices=["auto", "required", "off"], default="auto")
    parser.add_argument("--max-clips", type=int, default=Policy.max_clips, help="after which a decoder is renewed")
    arguments = parser.parse_args()
    seeds = make_seeds(arguments.clips)
    print(f"{len(seeds)} seeds: {', '.join(seeds)}", flush=True)
    report = fuzz(
        arguments.files,
        list(seeds.values()),
        first=arguments.first,
        num_workers=arguments.workers,
        deadline_s=arguments.deadline_s,
        policy=Policy(sandbox=arguments.sandbox, max_clips=arguments.max_clips),
        keep=arguments.keep,
    )
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())

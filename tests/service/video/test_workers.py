"""Decoder processes: what they return, and what becomes of those that die, hang or are no longer wanted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from service.errors import Busy, DeadlineExceeded, DecoderCrashed, NotAVideo, StartError
from service.settings import Settings
from service.video import Clip, ClipInfo, Sampling, decode_clip, decode_windows, process, workers
from service.video.assembly import WindowInfo
from service.video.child import Policy
from service.video.windows import Windowing
from service.video.workers import DecodePool
from tests.service.conftest import PATIENCE_S, eventually, lives, running, wait_until
from ttmodels.data.encode import write_video

SAMPLING = Sampling(num_frames=6, height=24, width=32)


def with_pool(
    test: Callable[[DecodePool], Awaitable[None]], num_workers: int = 1, policy: Policy | None = None
) -> DecodePool:
    """Run a test on a pool, and see that it leaves no process and no shared memory."""

    async def run() -> DecodePool:
        pool = DecodePool(num_workers, SAMPLING.clip_bytes, policy, on_recycle=reasons.append)
        await pool.start()
        seen.update(pool.pids)
        slots.update(decoder._slot.name for decoder in pool._decoders)
        try:
            await asyncio.wait_for(test(pool), PATIENCE_S)
        finally:
            seen.update(pool.pids)
            await pool.close()
        return pool

    reasons: list[str] = []
    seen: set[int] = set()
    slots: set[str] = set()
    pool = asyncio.run(run())
    for pid in seen:
        assert not lives(pid), f"decoder {pid} outlived its pool"
    for name in slots:
        assert not Path("/dev/shm", name).exists(), f"shared memory {name} outlived its pool"
    assert len(reasons) == pool.num_recycled
    return pool


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def test_decodes_as_decode_clip_does(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        results = await asyncio.gather(*(pool.decode(path, SAMPLING, soon()) for path in clips.values() for _ in "12"))
        for path, result in zip([p for p in clips.values() for _ in "12"], results, strict=True):
            expected = decode_clip(path, SAMPLING)
            np.testing.assert_array_equal(result.result.frames, expected.frames)
            assert result.result.info == expected.info
            assert result.decode_s > 0
            assert result.queue_s >= 0

    pool = with_pool(test, num_workers=2)
    assert pool.num_replaced == 0


def test_a_smaller_clip_fits_the_same_memory(clips: dict[str, Path]) -> None:
    small = Sampling(num_frames=2, height=5, width=7)

    async def test(pool: DecodePool) -> None:
        for sampling in (SAMPLING, small, SAMPLING):
            result = await pool.decode(clips["red"], sampling, soon())
            np.testing.assert_array_equal(result.result.frames, decode_clip(clips["red"], sampling).frames)

    with_pool(test)


def test_a_bad_file_is_an_error_of_its_own_class_and_keeps_the_worker(tmp_path: Path, clips: dict[str, Path]) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")

    async def test(pool: DecodePool) -> None:
        before = pool.pids
        with pytest.raises(NotAVideo, match="expected a video") as caught:
            await pool.decode(bad, SAMPLING, soon())
        assert str(tmp_path) not in caught.value.detail
        await pool.decode(clips["red"], SAMPLING, soon())
        assert pool.pids == before

    with_pool(test)


def test_a_worker_killed_while_decoding_costs_one_request(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        requests = [asyncio.create_task(pool.decode(clips["red"], SAMPLING, soon())) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert pool.num_waiting == 2
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DecoderCrashed, match="SIGKILL"):
            await requests[0]
        await asyncio.gather(*requests[1:])
        assert pool.num_alive == 1
        assert pid not in pool.pids

    assert with_pool(test).num_replaced == 1


def test_a_worker_that_dies_idle_costs_no_request(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        os.kill(pool.pids[0], signal.SIGKILL)
        await eventually(lambda: pool.num_alive == 0)
        await pool.decode(clips["red"], SAMPLING, soon())
        assert len(pool.pids) == 1

    assert with_pool(test).num_replaced == 1


def test_a_hang_ends_at_the_deadline(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        os.kill(pool.pids[0], signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded, match="decoding was not done"):
            await pool.decode(clips["red"], SAMPLING, time.monotonic() + 0.1)
        await pool.decode(clips["red"], SAMPLING, soon())

    assert with_pool(test).num_replaced == 1


def test_waiting_ends_at_the_deadline_and_leaves_the_worker_alone(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        first = asyncio.create_task(pool.decode(clips["red"], SAMPLING, soon()))
        await asyncio.sleep(0.05)
        with pytest.raises(DeadlineExceeded, match="no decoder was free"):
            await pool.decode(clips["red"], SAMPLING, time.monotonic() + 0.1)
        os.kill(pid, signal.SIGCONT)
        await first

    assert with_pool(test).num_replaced == 0


def test_a_turn_that_comes_too_late_costs_no_decoder(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        with pytest.raises(DeadlineExceeded):
            await pool.decode(clips["red"], SAMPLING, time.monotonic())
        assert pool.num_idle == 1
        await pool.decode(clips["red"], SAMPLING, soon())

    assert with_pool(test).num_replaced == 0


def test_a_cancelled_request_frees_its_place_at_once(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        os.kill(pool.pids[0], signal.SIGSTOP)
        request = asyncio.create_task(pool.decode(clips["red"], SAMPLING, soon()))
        await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await pool.decode(clips["red"], SAMPLING, soon())

    assert with_pool(test).num_replaced == 1


INFO = ClipInfo("mp4", "h264", 64, 48, 1.0, None, 6, 0, False, (0.0,) * 6, (0.0,) * 6, True, ())


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"7",
        b"",
        b"no JSON",
        b"\xff",
        b'{"error": "?"}',
        b'{"info": {}}',
        b"[" * 100_000,
        json.dumps({"info": asdict(INFO) | {"width": "wide"}}).encode(),
        json.dumps({"info": asdict(INFO) | {"times_s": 3}}).encode(),
    ],
    ids=lambda line: line[:40].decode("ascii", "replace"),
)
def test_a_worker_that_talks_nonsense_is_not_trusted(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: DecodePool) -> None:
        (decoder,) = pool._decoders

        async def nonsense() -> bytes:
            return line + b"\n"

        monkeypatch.setattr(decoder._reader, "readline", nonsense)
        with pytest.raises(DecoderCrashed):
            await pool.decode(Path("/dev/null"), SAMPLING, soon())

    assert with_pool(test).num_replaced == 1


def test_first_come_first_served(clips: dict[str, Path]) -> None:
    """Who has just been served does not get in before those who wait."""
    order = []

    async def test(pool: DecodePool) -> None:
        async def client(name: int) -> None:
            for _ in range(3):
                await pool.decode(clips["red"], SAMPLING, soon())
                order.append(name)

        await asyncio.gather(*(client(name) for name in range(3)))

    with_pool(test)
    assert order == [0, 1, 2] * 3


def test_a_clip_alone_decodes_on_all_cores_and_one_among_others_on_its_own(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    decode = process.Decoder.decode

    async def noted(self: process.Decoder, path: Path, sampling: Sampling, limit_s: float, num_threads: int) -> Clip:
        threads.append(num_threads)
        clip = await decode(self, path, sampling, limit_s, num_threads)
        np.testing.assert_array_equal(clip.frames, expected)
        return clip

    async def test(pool: DecodePool) -> None:
        await pool.decode(clips["red"], SAMPLING, soon())
        assert threads == [3], "of the four decoders as many as there are cores for"
        threads.clear()
        await asyncio.gather(*(pool.decode(clips["red"], SAMPLING, soon()) for _ in range(9)))
        assert threads[:6] == [3, 3, 2] + [1] * 3, "the last three may find decoders that have just become idle"

    expected = decode_clip(clips["red"], SAMPLING).frames
    monkeypatch.setattr(process.Decoder, "decode", noted)
    monkeypatch.setattr(workers, "usable_cores", lambda: 3)
    with_pool(test, num_workers=4)


def test_giving_up_at_the_moment_of_one_s_turn_loses_no_decoder() -> None:
    async def test(pool: DecodePool) -> None:
        decoder = await pool._take(soon())
        early, late = (asyncio.create_task(pool._take(soon())) for _ in range(2))
        await asyncio.sleep(0)
        early.cancel()
        pool._offer(decoder)
        assert await late is decoder
        early = asyncio.create_task(pool._take(soon()))
        await asyncio.sleep(0)
        pool._offer(decoder)
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
        assert (pool.num_idle, pool.num_waiting) == (1, 0)

    with_pool(test)


def test_many_cancelled_requests_leave_nothing_behind(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        for _ in range(10):
            requests = [asyncio.create_task(pool.decode(clips["red"], SAMPLING, soon())) for _ in range(4)]
            await asyncio.sleep(0.003)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        await pool.decode(clips["red"], SAMPLING, soon())
        assert pool.num_waiting == 0

    with_pool(test, num_workers=2)


def test_signals_to_the_group_do_not_end_a_worker(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool.pids[0], number)
        await pool.decode(clips["red"], SAMPLING, soon())

    assert with_pool(test).num_replaced == 0


def test_a_worker_ends_itself_when_the_parent_does_not(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_S", -PATIENCE_S + 0.001)

    async def test(pool: DecodePool) -> None:
        with pytest.raises(DecoderCrashed, match="SIGALRM"):
            await pool.decode(clips["red"], SAMPLING, soon())

    with_pool(test)


ORPHANS = """
import asyncio, json, os, pathlib, sys, time
from service.video import Sampling
from service.video.workers import DecodePool

async def main():
    sampling = Sampling(num_frames=1)
    pool = DecodePool(2, sampling.clip_bytes)
    await pool.start()
    request = asyncio.create_task(pool.decode(pathlib.Path(sys.argv[1]), sampling, time.monotonic() + 60))
    await asyncio.sleep(0.02)
    assert not request.done()
    print(json.dumps([pool.pids, [decoder._slot.name for decoder in pool._decoders]]), flush=True)
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_workers_and_their_memory_go_when_the_parent_is_killed(long_clip: Path, tmp_path: Path) -> None:
    """The script is a file: decoders import the parent's main module."""
    (tmp_path / "parent.py").write_text(ORPHANS)
    done = subprocess.run([sys.executable, tmp_path / "parent.py", long_clip], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    pids, names = json.loads(done.stdout)
    assert len(pids) == len(names) == 2
    wait_until(lambda: not any(map(lives, pids)), "the decoders are gone")
    wait_until(lambda: not any(Path("/dev/shm", name).exists() for name in names), "their memory is given back")


def test_a_start_that_fails_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(process, "SharedMemory", refuse)
    with pytest.raises(StartError, match="no more processes"):
        asyncio.run(DecodePool(1, SAMPLING.clip_bytes).start())


# ---- renewed in good health


def test_a_worker_is_renewed_after_so_many_clips(clips: dict[str, Path]) -> None:
    pids: list[int] = []

    async def test(pool: DecodePool) -> None:
        for _ in range(7):
            (pid,) = pool.pids
            pids.append(pid)
            result = await pool.decode(clips["red"], SAMPLING, soon())
            np.testing.assert_array_equal(result.result.frames, expected)
            await eventually(lambda: len(pool.pids) == 1)

    expected = decode_clip(clips["red"], SAMPLING).frames
    pool = with_pool(test, policy=Policy(max_clips=3))
    assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]
    assert (pool.num_recycled, pool.num_replaced) == (2, 0)


@pytest.mark.parametrize(
    ("policy", "usage", "reason"),
    [
        (Policy(max_rss_bytes=1 << 20), None, "memory"),
        (Policy(), (1 << 20, 601.0), "cpu_time"),
        (Policy(max_clips=1), None, "clips"),
        (Policy(), None, None),
        (Policy(), (0, 0.0), None),  # where there is no /proc
    ],
)
def test_why_a_worker_is_renewed(
    policy: Policy,
    usage: tuple[int, float] | None,
    reason: str | None,
    clips: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(pool: DecodePool) -> None:
        before = pool.pids
        await pool.decode(clips["red"], SAMPLING, soon())
        await eventually(lambda: len(pool.pids) == 1)
        assert (pool.pids == before) == (reason is None)

    caplog.set_level("INFO", "service.video.workers")
    if usage is not None:
        monkeypatch.setattr(process, "_usage", lambda pid: usage)
    with_pool(test, policy=policy)
    told = [record.message for record in caplog.records if "is renewed" in record.message]
    assert [message.split("clips: ")[1] for message in told] == ([reason] if reason else [])


def test_usage_is_what_the_kernel_says() -> None:
    rss_bytes, cpu_s = process._usage(os.getpid())
    assert rss_bytes == pytest.approx(int(Path("/proc/self/statm").read_text().split()[1]) * 4096, rel=0.1)
    assert cpu_s == pytest.approx(time.process_time(), abs=0.5)
    assert process._usage(2**22 + 1) == (0, 0.0)


def test_renewing_under_load_loses_no_request(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        results = await asyncio.gather(*(pool.decode(clips["red"], SAMPLING, soon()) for _ in range(40)))
        assert len(results) == 40
        await eventually(lambda: pool.num_alive == 2)

    assert with_pool(test, num_workers=2, policy=Policy(max_clips=4)).num_recycled >= 8


# ---- a caller who hangs up

STOPPED_S = 0.05
"""The issue's own bound, from the moment in which the caller is gone to that in which its decoder is dead."""


async def seconds_to_stop(request: asyncio.Task[Any], pid: int) -> float:
    """Cancel a request; how long its decoder process lived on."""
    request.cancel()
    began = time.monotonic()
    await eventually(lambda: not lives(pid))
    took_s = time.monotonic() - began
    with pytest.raises(asyncio.CancelledError):
        await request
    return took_s


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seconds of decoding: every picture is a new one, and each depends on the one before."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8)
    frames = np.stack([np.roll(noise, 3 * i, axis=1) for i in range(40)])
    write_video(path, frames, options={"preset": "ultrafast", "crf": "10", "g": "1000"})
    with av.open(str(path)) as source, av.open(str(path.with_name("longer.mp4")), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for i in range(20 * len(packets)):
            packet = packets[i % len(packets)]
            packet.stream, packet.pts, packet.dts = stream, i * 512, i * 512
            output.mux(packet)
    return path.with_name("longer.mp4")


def works(pid: int, since_s: float) -> bool:
    """Whether a process is past its start and in the middle of a clip."""
    return process._usage(pid)[1] > since_s + 0.03


def stopped_after_s(pid: int) -> float:
    """How long from now a process takes to be gone."""
    began = time.monotonic()
    wait_until(lambda: not lives(pid), "the decoder is dead")
    return time.monotonic() - began


def test_a_cancelled_decode_stops_at_once(long_clip: Path) -> None:
    took: list[float] = []

    async def test(pool: DecodePool) -> None:
        for _ in range(3):  # the best of a few: other work on the machine may delay any one
            (pid,) = pool.pids
            since_s = process._usage(pid)[1]
            request = asyncio.create_task(pool.decode(long_clip, SAMPLING, soon()))
            await eventually(lambda pid=pid, since_s=since_s: works(pid, since_s))
            took.append(await seconds_to_stop(request, pid))
            await eventually(lambda: pool.num_idle == 1)

    with_pool(test)
    assert min(took) < STOPPED_S, took


def test_a_cancelled_timeline_stops_at_once_also_between_two_windows(long_clip: Path) -> None:
    windowing = Windowing(window_s=0.4, stride_s=0.4, max_windows=1000)
    took: list[float] = []

    async def test(pool: DecodePool) -> None:
        async def take(frames: np.ndarray, info: WindowInfo) -> None:
            taken.append(info)
            if len(taken) == 3:
                await asyncio.sleep(PATIENCE_S)

        taken: list[WindowInfo] = []
        for _ in range(3):
            (pid,) = pool.pids
            taken.clear()
            request = asyncio.create_task(pool.decode_windows(long_clip, SAMPLING, windowing, take, soon()))
            await eventually(lambda: len(taken) == 3)
            took.append(await seconds_to_stop(request, pid))
            await eventually(lambda: pool.num_idle == 1)

    with_pool(test)
    assert min(took) < STOPPED_S, took


def test_what_takes_a_window_may_fail(clips: dict[str, Path]) -> None:
    """Its error comes out, and the decoder, in the middle of something, is replaced."""

    async def refuse(frames: np.ndarray, info: WindowInfo) -> None:
        raise Busy("no place", retry_after_s=1.0)

    async def test(pool: DecodePool) -> None:
        windowing = Windowing(window_s=0.1, stride_s=0.1, max_windows=1000)
        with pytest.raises(Busy, match="no place"):
            await pool.decode_windows(clips["red"], SAMPLING, windowing, refuse, soon())
        await pool.decode(clips["red"], SAMPLING, soon())

    assert with_pool(test).num_replaced == 1


def test_windows_through_the_pool_are_those_of_a_plain_decode(clips: dict[str, Path]) -> None:
    windowing = Windowing(window_s=0.3, stride_s=0.1, max_windows=1000)
    found: list[tuple[WindowInfo, bytes]] = []
    expected: list[tuple[WindowInfo, bytes]] = []

    async def take(frames: np.ndarray, info: WindowInfo) -> None:
        await asyncio.sleep(0.01)
        found.append((info, frames.tobytes()))

    async def test(pool: DecodePool) -> None:
        decoded = await pool.decode_windows(clips["red"], SAMPLING, windowing, take, soon())
        out = np.zeros(SAMPLING.clip_shape, np.uint8)
        info = decode_windows(
            clips["red"], SAMPLING, windowing, lambda window: expected.append((window, out.tobytes())), out
        )
        assert decoded.result == info

    assert with_pool(test).num_replaced == 0
    assert len(expected) == 6
    assert found == expected


def test_more_windows_than_may_be_are_not_believed(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: DecodePool) -> None:
        (decoder,) = pool._decoders
        line = json.dumps({"window": asdict(WindowInfo(0.0, 1.0, (0.0,) * 6, (0.0,) * 6))}).encode()

        async def nonsense() -> bytes:
            return line + b"\n"

        async def take(frames: np.ndarray, info: WindowInfo) -> None:
            taken.append(info)

        taken: list[WindowInfo] = []
        monkeypatch.setattr(decoder._reader, "readline", nonsense)
        windowing = Windowing(window_s=1, stride_s=1, max_windows=5)
        with pytest.raises(DecoderCrashed):
            await pool.decode_windows(clips["red"], SAMPLING, windowing, take, soon())
        assert len(taken) == 5

    assert with_pool(test).num_replaced == 1


def peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


@pytest.mark.slow
def test_a_timeline_s_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Ten times as long, at pictures of 300 KB: the decoder's peak stays where it was."""
    sampling = Sampling(num_frames=16, height=256, width=384)
    peaks: list[int] = []
    frames = np.random.default_rng(0).integers(0, 256, (25, 48, 64, 3), np.uint8)
    for seconds in (30, 300):
        write_video(tmp_path / f"{seconds}.mp4", np.concatenate([frames] * seconds), options={"preset": "ultrafast"})

    async def take(frames: np.ndarray, info: WindowInfo) -> None:
        pass

    async def run() -> None:
        for seconds in (30, 300):
            pool = DecodePool(1, sampling.clip_bytes)
            await pool.start()
            try:
                windowing = Windowing(window_s=3, stride_s=1, max_windows=1000)
                path = tmp_path / f"{seconds}.mp4"
                await pool.decode_windows(path, sampling, windowing, take, time.monotonic() + 60)
                peaks.append(peak_bytes(pool.pids[0]))
            finally:
                await pool.close()

    asyncio.run(run())
    assert peaks[1] < peaks[0] + 24 * 2**20, peaks  # the packets and their numbers are held as well


def test_a_client_that_hangs_up_stops_the_decoder_at_once(long_clip: Path, models: Path) -> None:
    data = long_clip.read_bytes()
    settings = Settings(models=models, default_model="colours/1", provider="cpu", decode_workers=1)
    took: list[float] = []
    with running(settings) as service:
        for _ in range(3):
            wait_until(lambda: service.classifier.pool.num_idle == 1, "a decoder is free")
            (pid,) = service.classifier.pool.pids
            since_s = process._usage(pid)[1]
            with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
                head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                connection.sendall(head % len(data) + data)
                wait_until(lambda pid=pid, since_s=since_s: works(pid, since_s), "the clip is being decoded")
            took.append(stopped_after_s(pid))
    assert min(took) < STOPPED_S, took

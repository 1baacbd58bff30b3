"""Decoder processes: what they return, and what becomes of those that die, hang or are no longer wanted."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from service.errors import DeadlineExceeded, DecoderCrashed, NotAVideo, StartError
from service.video import Sampling, decode_clip, process, workers
from service.video.workers import DecodePool
from tests.service.conftest import PATIENCE_S, eventually, lives

SAMPLING = Sampling(num_frames=6, height=24, width=32)


def with_pool(test: Callable[[DecodePool], Awaitable[None]], num_workers: int = 1) -> DecodePool:
    """Run a test on a pool, and see that it leaves no process and no shared memory."""

    async def run() -> DecodePool:
        pool = DecodePool(num_workers, SAMPLING.clip_bytes)
        await pool.start()
        seen.update(pool.pids)
        slots.update(decoder._slot.name for decoder in pool._decoders)
        try:
            await asyncio.wait_for(test(pool), PATIENCE_S)
        finally:
            seen.update(pool.pids)
            await pool.close()
        return pool

    seen: set[int] = set()
    slots: set[str] = set()
    pool = asyncio.run(run())
    for pid in seen:
        assert not lives(pid), f"decoder {pid} outlived its pool"
    for name in slots:
        assert not Path("/dev/shm", name).exists(), f"shared memory {name} outlived its pool"
    return pool


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def test_decodes_as_decode_clip_does(clips: dict[str, Path]) -> None:
    async def test(pool: DecodePool) -> None:
        results = await asyncio.gather(*(pool.decode(path, SAMPLING, soon()) for path in clips.values() for _ in "12"))
        for path, result in zip([p for p in clips.values() for _ in "12"], results, strict=True):
            expected = decode_clip(path, SAMPLING)
            np.testing.assert_array_equal(result.clip.frames, expected.frames)
            assert result.clip.info == expected.info
            assert result.decode_s > 0
            assert result.queue_s >= 0

    pool = with_pool(test, num_workers=2)
    assert pool.num_replaced == 0


def test_a_smaller_clip_fits_the_same_memory(clips: dict[str, Path]) -> None:
    small = Sampling(num_frames=2, height=5, width=7)

    async def test(pool: DecodePool) -> None:
        for sampling in (SAMPLING, small, SAMPLING):
            result = await pool.decode(clips["red"], sampling, soon())
            np.testing.assert_array_equal(result.clip.frames, decode_clip(clips["red"], sampling).frames)

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


@pytest.mark.parametrize("reply", [{}, {"info": {}}, {"info": {"times_s": 3, "warnings": []}}, {"error": "?"}, [], 7])
def test_a_worker_that_talks_nonsense_is_not_trusted(reply: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: DecodePool) -> None:
        (decoder,) = pool._decoders

        async def nonsense() -> object:
            return reply

        monkeypatch.setattr(decoder, "_reply", nonsense)
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


def test_a_start_that_fails_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(process, "SharedMemory", refuse)
    with pytest.raises(StartError, match="no more processes"):
        asyncio.run(DecodePool(1, SAMPLING.clip_bytes).start())

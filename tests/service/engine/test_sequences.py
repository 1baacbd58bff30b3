"""Clips in pieces: each has its own state, whatever others do, and an end whatever its client does.

The four faults of another server's sequence batcher that users met have a test each: triton-inference-server/server
#8449, #7117, #8586 and #8390.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.batcher import State
from service.engine.model import Model
from service.engine.provider import Choice
from service.engine.sequences import MAX_PIECES, Sequence, Sequences
from service.engine.session import Session
from service.errors import (
    Busy,
    DeadlineExceeded,
    NotReady,
    RequestError,
    SequenceBroken,
    SequenceExpired,
    UnknownSequence,
)
from service.settings import Settings
from tests.service.conftest import PATIENCE_S, eventually
from tests.service.engine import streaming
from tests.service.engine.streaming import clip, logits_over_time

CLOSE = 1e-5


class Gated(Session):
    """Writes down the batches that it runs; `gate` holds a run until it is set, `fail` lets it fail."""

    def __init__(self, path: Path) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fail = False
        self.batches: list[int] = []
        self.num_done = 0
        super().__init__(path, Choice("cpu", "because"))

    def run(
        self, frames: np.ndarray, lengths: np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, np.ndarray, State]:
        self.batches.append(len(frames))
        assert self.gate.wait(PATIENCE_S)
        if self.fail:
            raise RuntimeError("a fault")
        outputs = super().run(frames, lengths, state)
        self.num_done += 1
        return outputs


class Room:
    """A model with its sequences."""

    def __init__(self, session: Gated, **options: Any) -> None:
        self.session = session
        self.model = Model(session, Settings(max_queue=options.pop("max_queue", 4096)))
        self.ends: list[str] = []
        self.num_frames = 0
        limits: dict[str, Any] = {"limit": 2000, "idle_s": PATIENCE_S} | options
        self.sequences = Sequences(on_step=self._count, on_over=self.ends.append, **limits)

    def _count(self, num_frames: int) -> None:
        self.num_frames += num_frames

    async def running(self, frames: np.ndarray, sequence: Sequence) -> asyncio.Task[Any]:
        """A piece that is being run, and held there."""
        self.session.gate.clear()
        before = len(self.session.batches)
        task = asyncio.create_task(sequence.step(frames, soon()))
        await eventually(lambda: len(self.session.batches) > before)
        return task


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streaming.save(tmp_path_factory.mktemp("models"))


def with_room(path: Path, test: Callable[[Room], Awaitable[None]], **options: Any) -> Room:
    async def run() -> Room:
        room = Room(Gated(path), **options)
        await room.model.start()
        try:
            await asyncio.wait_for(test(room), PATIENCE_S)
        finally:
            room.session.gate.set()
            await asyncio.wait_for(room.sequences.drain(), PATIENCE_S)
            await asyncio.wait_for(room.model.retire(), PATIENCE_S)
        return room

    return asyncio.run(run())


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def check(got: np.ndarray, frames: np.ndarray, start: int = 0) -> None:
    """`got` is what the model says of these frames after `start` others."""
    np.testing.assert_allclose(got, logits_over_time(frames)[start : start + len(got)], atol=CLOSE)


def test_pieces_of_any_length_are_the_whole_clip(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence = room.sequences.begin(room.model)
        frames = clip(1, 9)
        for start, end in ((0, 1), (1, 5), (5, 9)):
            inference = await sequence.step(frames[start:end], soon())
            check(inference.logits_over_time, frames, start)
        np.testing.assert_allclose(inference.logits, logits_over_time(frames)[-1], atol=CLOSE)
        nothing = await sequence.step(frames[:1], soon(), length=0)
        np.testing.assert_allclose(nothing.logits, inference.logits, atol=CLOSE)
        whole = await room.model.classify(frames, soon())
        check(whole.logits_over_time, frames)
        sequence.end()
        with pytest.raises(UnknownSequence, match="the sequence has ended"):
            await sequence.step(frames, soon())

    room = with_room(path, test)
    assert room.num_frames == 9
    assert room.ends == ["ok"]


def test_pieces_of_many_sequences_share_a_run_and_those_of_one_keep_their_order(path: Path) -> None:
    async def test(room: Room) -> None:
        first = await room.running(clip(0, 1), room.sequences.begin(room.model))
        clips = [clip(i, 3) for i in range(1, 41)]
        sequences = [room.sequences.begin(room.model) for _ in clips]
        pieces = [
            [asyncio.create_task(sequence.step(frames[i : i + 1], soon())) for i in range(3)]
            for sequence, frames in zip(sequences, clips, strict=True)
        ]
        await eventually(lambda: room.model.depth == 40)
        room.session.gate.set()
        for frames, tasks in zip(clips, pieces, strict=True):
            for i, task in enumerate(tasks):
                check((await task).logits_over_time, frames, i)
        await first
        assert room.session.batches == [1, 40, 40, 40]

    with_room(path, test)


# --- the four faults ----------------------------------------------------------------------------------------------


def test_8449_the_end_of_idle_sequences_ends_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks for idle sequences found the same ones again and again, and did nothing else any more. Here a piece
    runs for longer than a sequence may stand idle, others have expired, and nothing wakes up any more."""

    async def test(room: Room) -> None:
        loop, timers = asyncio.get_running_loop(), []
        call_at = loop.call_at

        def counted(when: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
            handle = call_at(when, *arguments, **options)
            timers.append(handle)
            return handle

        monkeypatch.setattr(loop, "call_at", counted)
        idle = [room.sequences.begin(room.model, ("sums", i, None)) for i in range(1, 21)]
        busy = room.sequences.begin(room.model, ("sums", 99, None))
        task = await room.running(clip(1, 2), busy)
        await eventually(lambda: len(room.sequences) == 1)
        assert {type(sequence.over.result()) for sequence in idle} == {SequenceExpired}
        timers.clear()
        await asyncio.sleep(0.3)  # six times as long as a sequence may stand idle
        assert len(timers) <= 2  # this test's own
        assert not busy.over.done()
        room.session.gate.set()
        check((await task).logits_over_time, clip(1, 2))
        await eventually(lambda: not len(room.sequences))
        pending = [one for one in timers if not one.cancelled() and one.when() > loop.time() - 0.01]
        assert len(pending) <= 1
        fresh = room.sequences.begin(room.model, ("sums", 99, None))
        check((await fresh.step(clip(2, 2), soon())).logits_over_time, clip(2, 2))

    room = with_room(path, test, idle_s=0.05)
    assert room.ends.count("sequence_expired") == 21


def test_7117_nothing_of_a_sequence_that_timed_out_is_found_in_the_next(path: Path) -> None:
    """The first client's piece runs on after its deadline, its sequence expires, and the next one has its id and its
    place. Even what is no number, which no multiplication by 0 takes away again, must not get there."""

    async def test(room: Room) -> None:
        first = room.sequences.begin(room.model, ("sums", 7, None))
        await first.step(clip(1, 3), soon())
        first._state = {name: np.full_like(row, np.nan) for name, row in first._state.items()}
        poisoned = await first.step(clip(1, 1), soon())
        assert np.isnan(poisoned.logits[:2]).all()
        room.session.gate.clear()
        before = len(room.session.batches)
        with pytest.raises(DeadlineExceeded):
            await first.step(clip(1, 1), time.monotonic() + 0.05)
        assert len(room.session.batches) == before + 1, "the piece was to be under way"
        await eventually(lambda: first.over.done())
        with pytest.raises(UnknownSequence, match="expected sequence_start, since there is no sequence 7 of sums"):
            room.sequences.find(("sums", 7, None))
        second = room.sequences.begin(room.model, ("sums", 7, None))
        task = asyncio.create_task(second.step(clip(2, 3), soon()))
        await asyncio.sleep(0)
        room.session.gate.set()
        check((await task).logits_over_time, clip(2, 3))
        check((await second.step(clip(2, 5)[3:], soon())).logits_over_time, clip(2, 5), 3)

    with_room(path, test, limit=1, idle_s=0.1)


def test_7117_a_late_run_does_not_move_a_state_that_its_caller_was_told_nothing_of(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence, frames = room.sequences.begin(room.model), clip(3, 6)
        await sequence.step(frames[:2], soon())
        room.session.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await sequence.step(frames[2:4], time.monotonic() + 0.05)
        room.session.gate.set()
        await eventually(lambda: room.session.num_done == 2)
        await asyncio.sleep(0.02)
        again = await sequence.step(frames[2:4], soon())
        check(again.logits_over_time, frames, 2)
        gone = await room.running(frames[4:], sequence)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        room.session.gate.set()
        await eventually(lambda: room.session.num_done == 4)
        await asyncio.sleep(0.02)
        check((await sequence.step(frames[4:], soon())).logits_over_time, frames, 4)

    with_room(path, test)


def test_8586_no_two_states_are_swapped(path: Path) -> None:
    """Neither the parts of one, whose outputs are ordered otherwise by name than their inputs, nor those of two
    sequences, in batches that are put together anew each time and from which some go away."""

    async def test(room: Room) -> None:
        chance = random.Random(0)
        clips = [clip(seed, 12) for seed in range(100)]
        sequences = [room.sequences.begin(room.model) for _ in clips]

        async def live(number: int) -> None:
            place = 0
            while place < 12:
                await asyncio.sleep(chance.random() / 100)
                piece = clips[number][place : place + chance.randint(1, 3)]
                work = asyncio.create_task(sequences[number].step(piece, soon()))
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.random() / 500)
                    if work.cancel():
                        await asyncio.gather(work, return_exceptions=True)
                        if work.cancelled():
                            continue
                check((await work).logits_over_time, clips[number], place)
                place += len(piece)

        await asyncio.gather(*map(live, range(100)))
        assert max(room.session.batches) > 4

    with_room(path, test)


def test_8390_an_end_that_never_comes_costs_its_time_and_nothing_else(path: Path) -> None:
    """Clients start sequences, and are never heard of again: places, memory and the model itself come back."""

    async def test(room: Room) -> None:
        forgotten = []
        for number in range(1, 61):
            if len(room.sequences) == 20:
                with pytest.raises(Busy, match="20 sequences are live, the limit"):
                    room.sequences.begin(room.model)
                await eventually(lambda: len(room.sequences) < 20)
            sequence = room.sequences.begin(room.model, ("sums", number))
            await sequence.step(clip(number, 1), soon())
            forgotten.append(weakref.ref(sequence))
            del sequence
        await eventually(lambda: not len(room.sequences))
        assert not room.sequences.run_on("sums")
        gc.collect()
        assert not [reference for reference in forgotten if reference() is not None]
        assert room.model._num_users == 0

    room = with_room(path, test, limit=20, idle_s=0.05)
    assert room.ends == ["sequence_expired"] * 60


# --- bounds, faults, ends -----------------------------------------------------------------------------------------


def test_a_failed_run_fails_its_piece_and_those_behind_it_and_leaves_the_state(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence, other, frames = room.sequences.begin(room.model), room.sequences.begin(room.model), clip(4, 6)
        await sequence.step(frames[:2], soon())
        task = await room.running(frames[2:3], sequence)
        behind = [asyncio.create_task(sequence.step(frames[i : i + 1], soon())) for i in (3, 4)]
        beside = asyncio.create_task(other.step(frames[:1], soon()))
        await asyncio.sleep(0)
        room.session.fail = True
        room.session.gate.set()
        with pytest.raises(RequestError, match="the model failed to run on this batch"):
            await task
        for one in behind:
            with pytest.raises(SequenceBroken, match="a piece before this one was not answered"):
                await one
        room.session.fail = False
        await asyncio.gather(beside, return_exceptions=True)
        check((await sequence.step(frames[2:], soon())).logits_over_time, frames, 2)

    with_room(path, test)


def test_so_many_pieces_of_one_and_so_many_sequences(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence = room.sequences.begin(room.model)
        first = await room.running(clip(0, 1), sequence)
        more = [asyncio.create_task(sequence.step(clip(0, 1), soon())) for _ in range(MAX_PIECES - 1)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=f"{MAX_PIECES} pieces of this sequence are waiting, the limit"):
            await sequence.step(clip(0, 1), soon())
        assert room.model.depth == 0, "of one sequence there is only one piece before the model"
        room.session.gate.set()
        await asyncio.gather(first, *more)
        room.sequences.begin(room.model)
        with pytest.raises(Busy, match="2 sequences are live, the limit"):
            room.sequences.begin(room.model)
        sequence.end()
        room.sequences.begin(room.model)

    with_room(path, test, limit=2)


def test_a_piece_is_not_waited_for_past_its_deadline(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence = room.sequences.begin(room.model)
        first = await room.running(clip(0, 1), sequence)
        with pytest.raises(DeadlineExceeded, match="the pieces before this one were not done"):
            await sequence.step(clip(0, 1), time.monotonic() + 0.02)
        room.session.gate.set()
        await first

    with_room(path, test)


def test_a_start_of_a_running_one_begins_anew(path: Path) -> None:
    async def test(room: Room) -> None:
        old = room.sequences.begin(room.model, ("sums", "x"))
        await old.step(clip(1, 2), soon())
        running = await room.running(clip(1, 3)[2:], old)
        waiting = asyncio.create_task(old.step(clip(1, 1), soon()))
        await asyncio.sleep(0)
        new = room.sequences.begin(room.model, ("sums", "x"))
        room.session.gate.set()
        check((await running).logits_over_time, clip(1, 3), 2)
        with pytest.raises(SequenceBroken, match="sequence 'x' was started anew"):
            await waiting
        assert room.sequences.find(("sums", "x")) is new
        check((await new.step(clip(2, 2), soon())).logits_over_time, clip(2, 2))
        with pytest.raises(UnknownSequence):
            room.sequences.find(("other", "x"))

    assert with_room(path, test).ends == ["sequence_broken", "not_ready"]


def test_a_sequence_keeps_its_model_and_a_model_does_not_wait_for_an_idle_one(path: Path) -> None:
    async def test(room: Room) -> None:
        sequence = room.sequences.begin(room.model)
        retiring = asyncio.create_task(room.model.retire())
        for start in range(3):
            await asyncio.sleep(0.05)
            check((await sequence.step(clip(1, 3)[start : start + 1], soon())).logits_over_time, clip(1, 3), start)
        assert not retiring.done()
        await retiring  # without an end of the sequence
        assert sequence.over.done()

    with_room(path, test, idle_s=0.2)


def test_draining_ends_all_and_waits_for_those_who_tell(path: Path) -> None:
    async def test(room: Room) -> None:
        told: list[str] = []

        async def tell() -> None:
            with room.sequences.open(room.model) as sequence:
                why = await sequence.over
                await asyncio.sleep(0.02)
                told.append(why.code)

        telling = asyncio.create_task(tell())
        by_id = room.sequences.begin(room.model, ("sums", 1))
        await asyncio.sleep(0)
        await room.sequences.drain()
        assert told == ["not_ready"]
        await telling
        with pytest.raises(NotReady, match="shutting down"):
            await by_id.step(clip(0, 1), soon())
        with pytest.raises(NotReady):
            room.sequences.begin(room.model)

    with_room(path, test)


@pytest.mark.slow
def test_a_thousand_live_sequences(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces in random order, of random sequences and lengths, against plain arithmetic on the whole clips."""

    async def test(room: Room) -> None:
        chance = random.Random(1)
        clips = [clip(seed, 10) for seed in range(1000)]
        sequences = [room.sequences.begin(room.model, ("sums", seed + 1)) for seed in range(1000)]
        places = [0] * 1000

        async def step(number: int) -> None:
            piece = clips[number][places[number] : places[number] + chance.randint(1, 3)]
            start, places[number] = places[number], places[number] + len(piece)
            check((await sequences[number].step(piece, soon())).logits_over_time, clips[number], start)

        started = time.perf_counter()
        while going := [number for number in range(1000) if places[number] < 10]:
            await asyncio.gather(*map(step, chance.sample(going, max(1, len(going) // 2))))
        spent = time.perf_counter() - started
        assert len(room.sequences) == 1000
        assert room.num_frames == 10_000
        sizes = room.session.batches
        with capsys.disabled():
            print(
                f"\n1,000 sequences: {10_000 / spent:,.0f} frames/s, {len(sizes)} runs, mean batch "
                f"{np.mean(sizes):.0f}, largest {max(sizes)}"
            )

    with_room(path, test)

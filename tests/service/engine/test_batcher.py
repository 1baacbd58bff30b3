"""The queue before a model: order, batches, padding, deadlines, cancellation, faults, and the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from service.engine import batcher as module
from service.engine.batcher import Batcher, Inference, State
from service.errors import Busy, DeadlineExceeded, NotReady, OutOfMemory, RequestError
from tests.service.conftest import PATIENCE_S, eventually


class Model:
    """Writes down what it is given; `gate` holds a run until it is set."""

    def __init__(self) -> None:
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail = False
        self.memory = 1000
        """Clips that fit into one run."""

    def run(self, frames: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        self.batches.append((frames, lengths))
        assert self.gate.wait(PATIENCE_S)
        if len(frames) > self.memory:
            raise OutOfMemory("no memory")
        if self.fail:
            raise RuntimeError("a fault")
        over_time = frames.astype(np.float32).mean((2, 3))
        return over_time[np.arange(len(frames)), lengths - 1], over_time, state

    @property
    def sizes(self) -> list[int]:
        return [len(frames) for frames, _ in self.batches]


def clip(value: int, steps: int = 2) -> np.ndarray:
    return np.full((steps, 2, 2, 3), value, np.uint8)


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def with_batcher(test: Callable[[Batcher, Model], Awaitable[None]], **options: Any) -> Model:
    model = Model()

    async def run() -> None:
        defaults: dict[str, Any] = {"max_batch": 4, "max_queue_delay_s": 0.0, "max_queue": 8}
        batcher = Batcher(model.run, **defaults | options)
        await batcher.start()
        try:
            await asyncio.wait_for(test(batcher, model), PATIENCE_S)
        finally:
            model.gate.set()
            await batcher.close()

    asyncio.run(run())
    return model


async def held(batcher: Batcher, model: Model) -> asyncio.Task[Inference]:
    """Close the gate and let one request run into it, so that the next ones wait in the queue."""
    model.gate.clear()
    first = asyncio.create_task(batcher.infer(clip(0), soon()))
    await eventually(lambda: bool(model.batches))
    return first


def test_each_gets_its_own_answer_in_batches_first_come_first_served() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i, steps=i), soon())) for i in range(1, 7)]
        await asyncio.sleep(0)
        assert batcher.depth == 6
        model.gate.set()
        await first
        for i, answer in enumerate(await asyncio.gather(*requests), start=1):
            np.testing.assert_array_equal(answer.logits, [i, i, i])
            np.testing.assert_array_equal(answer.logits_over_time, np.full((i, 3), i))
            assert answer.batch_size == (4 if i <= 4 else 2)

    model = with_batcher(test)
    assert model.sizes == [1, 4, 2]
    frames, lengths = model.batches[1]
    np.testing.assert_array_equal(lengths, np.array([1, 2, 3, 4], np.int32))
    assert lengths.dtype == np.int32
    assert frames.shape == (4, 4, 2, 2, 3)
    assert frames[0, 1:].max() == 0


def test_waiting_for_company_fills_a_batch() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = asyncio.create_task(batcher.infer(clip(1), soon()))
        await asyncio.sleep(0.02)
        assert model.sizes == []
        await asyncio.gather(first, *(batcher.infer(clip(2), soon()) for _ in range(3)))

    assert with_batcher(test, max_queue_delay_s=PATIENCE_S / 2).sizes == [4]


def test_waiting_for_company_ends() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        await batcher.infer(clip(1), soon())

    assert with_batcher(test, max_queue_delay_s=0.01).sizes == [1]


def test_a_full_queue_is_busy_and_says_when_to_come_back() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        await batcher.infer(clip(0), soon())
        model.batches.clear()
        first = await held(batcher, model)
        waiting = [asyncio.create_task(batcher.infer(clip(1), soon())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 clips are waiting") as caught:
            await batcher.infer(clip(2), soon())
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 0
        model.gate.set()
        await asyncio.gather(first, *waiting)

    with_batcher(test, max_queue=2)


def test_a_deadline_passes_in_the_queue() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        with pytest.raises(DeadlineExceeded):
            await batcher.infer(clip(1), time.monotonic() + 0.02)
        assert batcher.depth == 0
        model.gate.set()
        await first

    assert with_batcher(test).sizes == [1]


def test_a_deadline_passes_while_the_model_hangs() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await batcher.infer(clip(1), time.monotonic() + 0.05)
        model.gate.set()
        assert (await batcher.infer(clip(2), soon())).logits[0] == 2

    with_batcher(test)


def test_a_cancelled_request_leaves_its_place() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        unwanted = asyncio.create_task(batcher.infer(clip(1), soon()))
        wanted = asyncio.create_task(batcher.infer(clip(2), soon()))
        await asyncio.sleep(0)
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
        assert batcher.depth == 1
        model.gate.set()
        await first
        assert (await wanted).logits[0] == 2

    assert with_batcher(test).sizes == [1, 1]


def test_a_run_is_stopped_when_the_last_of_its_batch_has_given_up() -> None:
    stopped: list[None] = []

    async def test(batcher: Batcher, model: Model) -> None:
        model.gate.clear()
        pair = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in (1, 2)]
        await eventually(lambda: model.sizes == [2])
        for i, task in enumerate(pair):
            assert len(stopped) == 0, "somebody still waits"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(stopped) == i
        model.fail = True
        model.gate.set()
        await eventually(lambda: not batcher._running)
        model.fail = False
        third = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in (5, 6)]
        assert [(await task).logits[0] for task in third] == [5, 6]
        assert len(stopped) == 1

    with_batcher(test, max_batch=2, max_queue_delay_s=PATIENCE_S / 2, stop=lambda: stopped.append(None))


def test_a_failed_batch_answers_all_of_it_and_the_next_one_runs() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(1), soon())) for _ in range(3)]
        await asyncio.sleep(0)
        model.fail = True
        model.gate.set()
        for request in (first, *requests):
            with pytest.raises(RequestError, match="failed to run"):
                await request
        model.fail = False
        assert (await batcher.infer(clip(5), soon())).logits[0] == 5

    with_batcher(test)


def test_the_wait_for_a_place_is_a_wait_and_ends_with_its_last_request() -> None:
    place = threading.Lock()

    async def test(batcher: Batcher, model: Model) -> None:
        with place:
            nobody = asyncio.create_task(batcher.infer(clip(1), soon()))
            await eventually(lambda: bool(batcher._running))
            nobody.cancel()
            late = asyncio.create_task(batcher.infer(clip(2), soon()))
            await asyncio.sleep(0.05)
            assert not model.batches
        inference = await late
        assert inference.queue_s > 0.04
        assert inference.gather_s + inference.run_s < inference.queue_s

    assert with_batcher(test, place=lambda: place).sizes == [1]


def test_a_batch_that_finds_no_memory_is_run_in_parts_and_the_next_ones_are_smaller() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in range(1, 9)]
        await asyncio.sleep(0)
        model.memory = 3
        model.gate.set()
        await first
        answers = await asyncio.gather(*requests)
        assert [answer.logits[0] for answer in answers] == list(range(1, 9))
        assert {answer.batch_size for answer in answers} == {2}
        assert batcher.fits == 2

    assert with_batcher(test, max_batch=8).sizes == [1, 8, 4, 2, 2, 4, 2, 2]


def test_a_clip_that_finds_no_memory_alone_is_told_so_and_the_others_are_answered() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in range(1, 4)]
        await asyncio.sleep(0)
        model.memory = 0
        model.gate.set()
        for request in (first, *requests):
            with pytest.raises(OutOfMemory, match="this clip"):
                await request
        model.memory = 1
        assert (await batcher.infer(clip(7), soon())).logits[0] == 7

    with_batcher(test)


def test_larger_batches_are_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_RUNS", 3)

    async def ask(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in range(4)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *requests)

    async def test(batcher: Batcher, model: Model) -> None:
        model.memory = 2
        await ask(batcher, model)
        assert model.sizes == [1, 4, 2, 2]
        model.memory = 4
        await ask(batcher, model)  # the third run that fits is the last with two
        model.batches.clear()
        await ask(batcher, model)
        assert model.sizes == [1, 4]

    with_batcher(test)


def test_a_batch_is_gathered_in_the_room_that_is_given_over_what_lay_there() -> None:
    room = np.full((4, 3, 2, 2, 3), 99, np.uint8)

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i, steps=i), soon())) for i in (2, 3)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *requests)

    model = with_batcher(test, room=lambda shape: room[: shape[0], : shape[1]])
    frames, _ = model.batches[1]
    assert np.shares_memory(frames, room)
    assert frames[:, :, 0, 0, 0].tolist() == [[2, 2, 0], [3, 3, 3]]


def test_it_is_warm_before_it_starts_and_in_the_thread_that_runs() -> None:
    threads: list[int] = []

    class Spy(Model):
        def run(self, frames: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
            threads.append(threading.get_ident())
            return super().run(frames, lengths, state)

    async def test() -> None:
        batcher = Batcher(
            Spy().run,
            max_batch=1,
            max_queue_delay_s=0,
            max_queue=1,
            warm_up=lambda: threads.append(threading.get_ident()),
        )
        await batcher.start()
        assert len(threads) == 1
        await batcher.infer(clip(1), soon())
        await batcher.close()

    asyncio.run(test())
    assert threads[0] == threads[1] != threading.get_ident()


def test_closing_answers_what_was_accepted_and_takes_no_more() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(i), soon())) for i in range(1, 7)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="closed"):
            await batcher.infer(clip(9), soon())
        model.gate.set()
        await closing
        assert [answer.logits[0] for answer in await asyncio.gather(first, *requests)] == list(range(7))

    with_batcher(test)


def test_a_long_clip_does_not_make_a_batch_of_padding() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        requests = [asyncio.create_task(batcher.infer(clip(1, steps), soon())) for steps in (2, 2, 9, 2, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *requests)

    model = with_batcher(test, max_frames=8)
    assert [frames.shape[:2] for frames, _ in model.batches] == [(1, 2), (2, 2), (1, 9), (2, 2)]


def test_frames_that_do_not_count_are_padding() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        frames = np.concatenate([clip(1, 2), clip(9, 3)])
        answer = await batcher.infer(frames, soon(), length=2)
        np.testing.assert_array_equal(answer.logits, [1, 1, 1])
        assert answer.logits_over_time.shape == (5, 3)

    model = with_batcher(test)
    np.testing.assert_array_equal(model.batches[0][1], [2])


def test_where_the_time_went() -> None:
    seen: list[tuple[int, float, float]] = []

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        second = asyncio.create_task(batcher.infer(clip(1), soon()))
        await asyncio.sleep(0.05)
        model.gate.set()
        held_up, waited = await first, await second
        assert held_up.run_s >= 0.05 <= waited.queue_s
        assert waited.gather_s >= 0 <= waited.run_s

    with_batcher(test, observe_batch=lambda *spent: seen.append(spent))
    assert [size for size, _, _ in seen] == [1, 1]
    assert seen[0][2] >= 0.05

"""Requests for one model, waiting in line and run in batches."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from service.engine.statistics import RunningMean
from service.errors import Busy, DeadlineExceeded, NotReady, OutOfMemory, RequestError

log = logging.getLogger(__name__)

PATIENCE_RUNS = 100
"""After so many runs that had their memory, twice as many clips are tried again."""

Room = Callable[[tuple[int, ...]], np.ndarray]
State = dict[str, np.ndarray]
"""What a streaming model carries from one piece of a clip to the next, by the names of its inputs; of other models
nothing."""
Run = Callable[[np.ndarray, np.ndarray, State], tuple[np.ndarray, np.ndarray, State]]


@dataclass(frozen=True)
class Inference:
    """One clip's share of a batch, logits [classes] and logits_over_time [time, classes], and where its time went."""

    logits: np.ndarray
    logits_over_time: np.ndarray
    state: State
    """For the next piece."""
    batch_size: int
    queue_s: float
    gather_s: float
    run_s: float


@dataclass(eq=False)
class _Waiting:
    frames: np.ndarray
    length: int
    state: State
    deadline: float
    future: asyncio.Future[Inference]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A bounded first-in-first-out queue before a model that runs batches in a thread of its own.

    Args:
        run: frames [batch, time, height, width, 3], lengths [batch], state [batch, ...] -> logits, logits_over_time,
            the state after them.
        max_batch: clips in one run.
        max_queue_delay_s: how long the first of a batch waits for company.
        max_queue: clips that may wait.
        max_frames: frames in one run, padding included; only a clip alone may have more.
        place: held while a batch is gathered and run; until it is had, the batch waits.
        room: shape -> memory for the frames of a batch, good until the next call.
        warm_up: called before the first run, in the thread that runs.
        stop: called when nobody waits for the run any more that is on; it may then fail.
        observe_batch: called with the size of each batch, the seconds that gathering it took, and those of its run.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_queue_delay_s: float,
        max_queue: int,
        max_frames: float = math.inf,
        place: Callable[[], AbstractContextManager[object]] = nullcontext,
        room: Room = lambda shape: np.empty(shape, np.uint8),
        warm_up: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
        observe_batch: Callable[[int, float, float], object] = lambda size, gather_s, run_s: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._fits, self._runs_that_fit = max_batch, 0
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue = max_queue
        self._max_frames = max_frames
        self._place, self._room, self._warm_up, self._stop = place, room, warm_up, stop
        self._observe_batch = observe_batch
        self._queue: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._changed = asyncio.Event()
        self._closing = False
        self._run_s = RunningMean()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ttvideo-model")
        self._worker: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        return len(self._queue)

    @property
    def fits(self) -> int:
        """The largest batch that is tried: half of one that found no memory, until that was long ago."""
        return self._fits

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Take no more, answer everything accepted, then end."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def infer(
        self, frames: np.ndarray, deadline: float, length: int | None = None, state: State | None = None
    ) -> Inference:
        """Wait in line and run.

        Args:
            frames: uint8 [time, height, width, 3].
            deadline: by `time.monotonic()`.
            length: frames that count; all of them without it.
            state: what the model carries from the frames before, without the batch; of one model all have the same.

        Raises:
            Busy: the queue is full.
            NotReady: closing.
            DeadlineExceeded: not run in time.
            OutOfMemory: there is not the memory even for this clip alone.
            RequestError: the run failed; every request of its batch gets it.
        """
        if self._closing:
            raise NotReady("the model is being closed", retry_after_s=1.0)
        if len(self._queue) >= self._max_queue:
            # The next run makes room, and takes so many from the line.
            raise Busy(f"{self._max_queue} clips are waiting for the model, the limit", retry_after_s=self._run_s.value)
        length = len(frames) if length is None else length
        waiting = _Waiting(frames, length, state or {}, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._changed.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await waiting.future
        except TimeoutError:
            raise _too_late() from None
        finally:
            if not waiting.future.done() or waiting.future.cancelled():
                self._forget(waiting)

    def _forget(self, waiting: _Waiting) -> None:
        try:
            self._queue.remove(waiting)
        except ValueError:  # it is being run already
            if self._running and _nobody_waits(self._running):
                self._stop()

    async def _work(self) -> None:
        while batch := await self._next_batch():
            parts = deque([batch])
            while parts:
                part = [waiting for waiting in parts.popleft() if not waiting.future.done()]
                if not part:
                    continue
                try:
                    await self._run_batch(part)
                except (OutOfMemory, MemoryError):
                    if len(part) == 1:
                        _refuse(part, OutOfMemory("expected memory to run the model on this clip, there is not enough"))
                        continue
                    self._fits, self._runs_that_fit = len(part) // 2, 0
                    log.warning("no memory for a batch of %d: %d from now on", len(part), self._fits)
                    parts.extendleft((part[self._fits :], part[: self._fits]))
                except Exception:
                    if _nobody_waits(part):
                        continue
                    log.exception("a batch of %d failed", len(part))
                    _refuse(part, RequestError("the model failed to run on this batch"))

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        self._running = batch
        try:
            logits, over_time, state, started, gather_s, run_s = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._gather_and_run, batch
            )
        finally:
            self._running = []
        self._run_s.add(gather_s + run_s)
        if self._fits < self._max_batch:
            self._runs_that_fit += 1
            if self._runs_that_fit == PATIENCE_RUNS:
                self._fits, self._runs_that_fit = min(2 * self._fits, self._max_batch), 0
        self._observe_batch(len(batch), gather_s, run_s)
        for i, waiting in enumerate(batch):
            if not waiting.future.done():
                share = over_time[i, : len(waiting.frames)]
                queue_s = started - waiting.since
                # A copy, so that no row keeps a whole batch.
                mine = {name: rows[i].copy() for name, rows in state.items()}
                waiting.future.set_result(Inference(logits[i], share, mine, len(batch), queue_s, gather_s, run_s))

    def _gather_and_run(self, batch: list[_Waiting]) -> tuple[np.ndarray, np.ndarray, State, float, float, float]:
        """Logits, logits over time, the state after them, when the batch had its place, and the seconds that gathering
        and running it took. In the thread: the copies of a large batch take milliseconds."""
        with self._place():
            if _nobody_waits(batch):
                raise RequestError("nobody waits for the batch any more")
            started = time.monotonic()
            frames = _stack([waiting.frames for waiting in batch], self._room)
            lengths = np.array([waiting.length for waiting in batch], np.int32)
            state = {name: np.stack([waiting.state[name] for waiting in batch]) for name in batch[0].state}
            gathered = time.monotonic()
            logits, over_time, after = self._run(frames, lengths, state)
            return logits, over_time, after, started, gathered - started, time.monotonic() - gathered

    async def _next_batch(self) -> list[_Waiting]:
        """At least one request that still wants an answer; none only when closing."""
        while True:
            while not self._queue:
                if self._closing:
                    return []
                self._changed.clear()
                await self._changed.wait()
            await self._wait_for_company(self._queue[0].since + self._max_queue_delay_s)
            batch: list[_Waiting] = []
            longest = 0
            while self._queue and len(batch) < self._fits:
                longest = max(longest, len(self._queue[0].frames))
                if batch and longest * (len(batch) + 1) > self._max_frames:
                    break
                waiting = self._queue.popleft()
                if waiting.future.done():
                    continue
                if time.monotonic() >= waiting.deadline:
                    waiting.future.set_exception(_too_late())
                    continue
                batch.append(waiting)
            if batch:
                return batch

    async def _wait_for_company(self, until: float) -> None:
        while len(self._queue) < self._fits and not self._closing and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the model did not get to this clip before the deadline")


def _nobody_waits(batch: list[_Waiting]) -> bool:
    return all(waiting.future.done() for waiting in batch)


def _refuse(batch: list[_Waiting], error: RequestError) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)


def _stack(clips: list[np.ndarray], room: Room) -> np.ndarray:
    """Pad with black to the longest.

    Shape: [time_i, height, width, 3] each -> [batch, time, height, width, 3].
    """
    if len(clips) == 1:
        return clips[0][None]
    frames = room((len(clips), max(map(len, clips)), *clips[0].shape[1:]))
    for i, clip in enumerate(clips):
        frames[i, : len(clip)] = clip
        frames[i, len(clip) :] = 0
    return frames

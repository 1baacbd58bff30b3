"""Clips that come in pieces: each has a state, on the model that it began with, until it ends or stands idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np

from service.engine.batcher import Inference
from service.engine.model import Model
from service.errors import (
    Busy,
    DeadlineExceeded,
    NotReady,
    RequestError,
    SequenceBroken,
    SequenceExpired,
    UnknownSequence,
)

MAX_PIECES = 16
"""Of one sequence that may wait for each other."""

Key = tuple[str, int | str, str | None]
"""A model's name, the id that a client gave its sequence there, and who that client is, where it is known."""


class Sequence:
    """One clip that comes in pieces.

    A piece counts where it is answered: one that failed, came too late or was given up leaves the state as it was,
    and the pieces that waited behind it fail too, since they were meant to come after it.

    Args:
        idle_s: how long it may stand idle; then it expires.
        on_step: called with the number of frames of each piece that was answered.
        on_over: called once, in the moment in which it takes no more.
    """

    def __init__(
        self,
        model: Model,
        *,
        idle_s: float,
        on_step: Callable[[int], object],
        on_over: Callable[[Sequence], object],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.model = model
        self.over: asyncio.Future[RequestError] = loop.create_future()
        """Why it takes no more pieces, from then on."""
        self.code = ""
        """How it ended: `ok`, or the code of an error."""
        self._idle_s, self._on_step, self._on_over = idle_s, on_step, on_over
        self._state = model.initial_state
        self._turn = asyncio.Lock()
        self._num_pieces = self._num_failed = 0
        self.busy: Callable[[], bool] = lambda: False
        """Whether a piece is on its way that did not get here yet, so that it does not stand idle."""
        self._model_in_use = model.use()
        self._model_in_use.__enter__()
        self._timer = loop.call_later(idle_s, self._expire)

    async def step(self, frames: np.ndarray, deadline: float, length: int | None = None) -> Inference:
        """Run the next piece, together with those of other sequences.

        Args:
            frames: uint8 [time, height, width, 3].
            deadline: by `time.monotonic()`.
            length: frames that count; all of them without it.

        Raises:
            Busy: too many pieces wait.
            SequenceBroken: a piece before it was not answered.
            DeadlineExceeded, RequestError: from the model.
            RequestError: `over`.
        """
        self._check_live()
        if self._num_pieces >= MAX_PIECES:
            raise Busy(f"{MAX_PIECES} pieces of this sequence are waiting, the limit", retry_after_s=1.0)
        num_failed = self._num_failed
        self._num_pieces += 1
        self._timer.cancel()
        try:
            async with self._in_turn(deadline):
                self._check_live()
                if self._num_failed != num_failed:
                    raise SequenceBroken("a piece before this one was not answered, so this one was not run either")
                inference = await self.model.step(frames, deadline, length, self._state)
            self._state = inference.state
            self._on_step(len(inference.logits_over_time) if length is None else length)
            return inference
        except BaseException:
            self._num_failed += 1
            raise
        finally:
            self._num_pieces -= 1
            self.touch()
            self._let_go()

    def touch(self) -> None:
        """It does not stand idle at this moment."""
        self._timer.cancel()
        if not self._num_pieces and not self.over.done():
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._expire)

    def end(self, why: RequestError | None = None) -> None:
        """Take no more pieces. One that runs is answered, those that wait are not run.

        Args:
            why: what whoever goes on is told; its own client ended it without a reason.
        """
        if not self.over.done():
            self.code = why.code if why else "ok"
            self.over.set_result(why or UnknownSequence("the sequence has ended"))
            self._timer.cancel()
            self._on_over(self)
            self._let_go()

    def _expire(self) -> None:
        if self.busy():
            self.touch()
            return
        self.end(SequenceExpired(f"the sequence stood idle for {self._idle_s:g} s, the limit, and was ended"))

    def _check_live(self) -> None:
        if self.over.done():
            raise self.over.result()

    @asynccontextmanager
    async def _in_turn(self, deadline: float) -> AsyncIterator[None]:
        """First come, first served."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the pieces before this one were not done before the deadline") from None
        try:
            yield
        finally:
            self._turn.release()

    def _let_go(self) -> None:
        """Of the model, once nothing runs on it for this sequence any more."""
        if self.over.done() and not self._num_pieces:
            self._model_in_use.__exit__(None, None, None)


class Sequences:
    """All that are live.

    Args:
        limit: how many; one more is `Busy`.
        idle_s: how long one may stand idle.
        on_step: called with the number of frames of each piece that was answered.
        on_over: called with `ok`, or the code of an error, whenever one takes no more.
    """

    def __init__(
        self,
        *,
        limit: int,
        idle_s: float,
        on_step: Callable[[int], object] = lambda num_frames: None,
        on_over: Callable[[str], object] = lambda code: None,
    ) -> None:
        self.limit, self.idle_s = limit, idle_s
        self._on_step, self._on_over = on_step, on_over
        self._live: dict[Sequence, Key | None] = {}
        self._by_key: dict[Key, Sequence] = {}
        self._num_open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._live)

    def begin(self, model: Model, key: Key | None = None) -> Sequence:
        """A new sequence, from zeros. One of the same key that is still live is ended.

        Raises:
            Busy: at the limit.
            NotReady: draining.
        """
        if self._draining:
            raise _shutting_down()
        if key is not None and (old := self._by_key.get(key)):
            old.end(SequenceBroken(f"sequence {key[1]!r} was started anew"))
        if len(self._live) >= self.limit:
            raise Busy(f"{self.limit} sequences are live, the limit", retry_after_s=1.0)
        sequence = Sequence(model, idle_s=self.idle_s, on_step=self._on_step, on_over=self._forget)
        self._live[sequence] = key
        if key is not None:
            self._by_key[key] = sequence
        return sequence

    def find(self, key: Key) -> Sequence:
        """One that was begun under this key.

        Raises:
            UnknownSequence: there is none.
        """
        sequence = self._by_key.get(key)
        if sequence is None:
            raise UnknownSequence(
                f"expected sequence_start, since there is no sequence {key[1]!r} of {key[0]}: it was never started, "
                f"was ended, or stood idle for {self.idle_s:g} s"
            )
        return sequence

    def run_on(self, name: str) -> bool:
        """Whether any that clients know by an id run on a model of this name, be it served any more or not."""
        return any(name == key[0] for key in self._by_key)

    @contextmanager
    def open(self, model: Model) -> Iterator[Sequence]:
        """A new sequence that ends with the block. `drain` waits for the block.

        Raises:
            Busy, NotReady: from `begin`.
        """
        sequence = self.begin(model)
        self._num_open += 1
        self._none_open.clear()
        try:
            yield sequence
        finally:
            sequence.end()
            self._num_open -= 1
            if not self._num_open:
                self._none_open.set()

    async def drain(self) -> None:
        """Begin no more, end all, and wait until those who opened one have said so."""
        self._draining = True
        for sequence in list(self._live):
            sequence.end(_shutting_down())
        await self._none_open.wait()

    def _forget(self, sequence: Sequence) -> None:
        key = self._live.pop(sequence)
        if key is not None:
            del self._by_key[key]
        self._on_over(sequence.code)


def _shutting_down() -> NotReady:
    return NotReady("the service is shutting down", retry_after_s=1.0)

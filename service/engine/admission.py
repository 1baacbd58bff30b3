"""How many clips may be under way, how long an upload may stand still, and when the last clip is done."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.engine.statistics import RunningMean
from service.errors import Busy, NotReady, UploadTimeout


class Admission:
    """Counts clips from before their upload to their answer.

    Args:
        limit: clips under way; one more is `Busy`.
        min_rate: bytes a second that an upload must bring on average.
        clock: seconds.
    """

    def __init__(self, limit: int, min_rate: float = 0.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.min_rate = min_rate
        self._clock = clock
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._stay_s = RunningMean(1.0)
        self._turned_away = 0
        self._uploads: set[asyncio.Timeout] = set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """One clip's stay.

        Raises:
            Busy: at the limit; `retry_after_s` is when a place is free for this one, and not for those only that were
                turned away before it.
            NotReady: draining.
        """
        if self.draining:
            raise self._shutting_down()
        if self.in_flight >= self.limit:
            self._turned_away += 1
            # Of so many clips that each stay so long, one leaves every stay / limit seconds.
            retry_after_s = self._turned_away * self._stay_s.value / self.limit
            raise Busy(f"{self.limit} clips are under way, the limit", retry_after_s=retry_after_s)
        self.in_flight += 1
        self._idle.clear()
        started = self._clock()
        try:
            yield
        finally:
            self._stay_s.add(self._clock() - started)
            self._turned_away = max(0, self._turned_away - 1)
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    @asynccontextmanager
    async def upload(self, timeout_s: float) -> AsyncIterator[Callable[[int], None]]:
        """The part of a clip's stay in which its body comes in. Gives what is to be called with the size of each
        piece.

        Raises:
            UploadTimeout: no piece for `timeout_s`, or after so long less than `min_rate`: a byte now and then keeps no
                place.
            NotReady: draining began.
        """
        loop = asyncio.get_running_loop()
        started = last = loop.time()
        received = 0

        def came(num_bytes: int) -> None:
            nonlocal last, received
            last, received = loop.time(), received + num_bytes
            if not self.draining:
                slowest_s = received / self.min_rate if self.min_rate else math.inf
                patience.reschedule(timeout_s + min(last, started + slowest_s))

        try:
            async with asyncio.timeout(timeout_s) as patience:
                self._uploads.add(patience)
                try:
                    yield came
                finally:
                    self._uploads.discard(patience)
        except TimeoutError:
            if self.draining:
                raise self._shutting_down() from None
            expected = f"the next piece of the body within {timeout_s:g} s, got none"
            if (now := loop.time()) < last + timeout_s:
                expected = f"{self.min_rate:g} bytes of the body a second, got {received} in {now - started:.1f} s"
            raise UploadTimeout(f"expected {expected}") from None

    async def drain(self) -> None:
        """Admit no more, end what is still being uploaded, and wait for the rest."""
        self.draining = True
        now = asyncio.get_running_loop().time()
        for patience in self._uploads:
            if not patience.expired():
                patience.reschedule(now)
        await self._idle.wait()

    def _shutting_down(self) -> NotReady:
        return NotReady("the service is shutting down", retry_after_s=self._stay_s.value)

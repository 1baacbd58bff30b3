"""How many clips may be under way, how long an upload may stand still, and when the last clip is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.errors import Busy, NotReady, UploadTimeout


class Admission:
    """Counts clips from before their upload to their answer.

    Args:
        limit: clips under way; one more is `Busy`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_s = 1.0
        self._uploads: set[asyncio.Timeout] = set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """One clip's stay.

        Raises:
            Busy: at the limit; `retry_after_s` is the time that a clip takes at the moment.
            NotReady: draining.
        """
        if self.draining:
            raise self._shutting_down()
        if self.in_flight >= self.limit:
            raise Busy(f"{self.limit} clips are under way, the limit", retry_after_s=self._mean_s)
        self.in_flight += 1
        self._idle.clear()
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    @asynccontextmanager
    async def upload(self, timeout_s: float) -> AsyncIterator[Callable[[], None]]:
        """The part of a clip's stay in which its body comes in. Gives what is to be called on each piece.

        Raises:
            UploadTimeout: no piece for `timeout_s`.
            NotReady: draining began.
        """
        loop = asyncio.get_running_loop()

        def came() -> None:
            if not self.draining:
                patience.reschedule(loop.time() + timeout_s)

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
            raise UploadTimeout(f"expected the next piece of the body within {timeout_s:g} s, got none") from None

    async def drain(self) -> None:
        """Admit no more, end what is still being uploaded, and wait for the rest."""
        self.draining = True
        now = asyncio.get_running_loop().time()
        for patience in self._uploads:
            if not patience.expired():
                patience.reschedule(now)
        await self._idle.wait()

    def _shutting_down(self) -> NotReady:
        return NotReady("the service is shutting down", retry_after_s=self._mean_s)

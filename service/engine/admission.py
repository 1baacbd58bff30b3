"""How many clips may be under way, and when the last one is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Busy, NotReady


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

    @contextmanager
    def admit(self) -> Iterator[None]:
        """One clip's stay.

        Raises:
            Busy: at the limit; `retry_after_s` is the time that a clip takes at the moment.
            NotReady: draining.
        """
        if self.draining:
            raise NotReady("the service is shutting down", retry_after_s=self._mean_s)
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

    async def drain(self) -> None:
        """Admit no more, and wait for those under way."""
        self.draining = True
        await self._idle.wait()

"""Requests for a model that is run for each as it comes: pieces of streams, images, features."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from service.engine.statistics import RunningMean
from service.errors import Busy, DeadlineExceeded, OutOfMemory, RequestError

log = logging.getLogger(__name__)

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Outcome:
    """What came out, and where the time went."""

    outputs: dict[str, np.ndarray]
    queue_s: float
    run_s: float


class Turns:
    """One run at a time, first come first served, in a thread of its own.

    Args:
        run: inputs by name -> outputs by name.
        max_queue: requests under way.
        place: held while one runs; until it is had, the request waits.
    """

    def __init__(
        self, run: Run, *, max_queue: int, place: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._run, self._place = run, place
        self._max_queue = max_queue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ttvideo-model")
        self._run_s = RunningMean()
        self.depth = 0

    async def infer(self, inputs: dict[str, np.ndarray], deadline: float) -> Outcome:
        """Wait in line and run.

        Args:
            deadline: by `time.monotonic()`.

        Raises:
            Busy: the queue is full.
            DeadlineExceeded: not run in time.
            OutOfMemory: there is not the memory for this request.
            RequestError: the run failed.
        """
        if self.depth >= self._max_queue:
            # The next run makes room.
            raise Busy(
                f"{self._max_queue} requests are waiting for the model, the limit", retry_after_s=self._run_s.value
            )
        asked = time.monotonic()

        def run() -> Outcome:
            with self._place():
                started = time.monotonic()
                outputs = self._run(inputs)
                return Outcome(outputs, started - asked, time.monotonic() - started)

        self.depth += 1
        try:
            async with asyncio.timeout(deadline - asked):
                outcome = await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except TimeoutError:
            raise DeadlineExceeded("the model did not get to this request before the deadline") from None
        except OutOfMemory:
            raise
        except Exception as error:
            log.exception("a run failed")
            raise RequestError("the model failed to run on this request") from error
        finally:
            self.depth -= 1
        self._run_s.add(outcome.run_s)
        return outcome

    def close(self) -> None:
        """After the last request."""
        self._thread.shutdown(wait=False)

"""Decoder processes, started before the first request.

A file that crashes or hangs FFmpeg costs its own request and nothing else: the process is replaced. The parent side
is a pool for asyncio; one process decodes one clip at a time, straight into memory that it shares with the parent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from service.cores import usable_cores
from service.errors import DeadlineExceeded, DecoderCrashed, StartError
from service.trace import stage
from service.video.child import Policy
from service.video.decode import Clip, ClipInfo
from service.video.process import FAILURES, Decoder, Take, prepare
from service.video.sampling import Sampling
from service.video.sandbox import Layer
from service.video.windows import Windowing

log = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 1.0
"""Past a clip's deadline by this much a decoder ends itself, should the parent no longer be there to do it."""

MAX_THREADS = 16
"""Of one clip, which decodes on the cores of those decoders that have nothing to do; more gain nothing."""


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """What came of a video, and where its time went."""

    result: T
    queue_s: float
    decode_s: float


class DecodePool:
    """Decoder processes for asyncio, first come first served.

    Args:
        num_workers: processes.
        clip_bytes: the largest clip that will be asked for.
        policy: what each process takes on, may do, and how long it lives.
        on_replace: called whenever a process was killed or died and another takes its place.
        on_recycle: called, with the reason, whenever a process has served its time and another takes its place.
    """

    def __init__(
        self,
        num_workers: int,
        clip_bytes: int,
        policy: Policy | None = None,
        *,
        on_replace: Callable[[], None] = lambda: None,
        on_recycle: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.num_workers = num_workers
        self._max_threads = min(MAX_THREADS, usable_cores())
        self.clip_bytes = clip_bytes
        self.policy = policy or Policy()
        self.layers: tuple[Layer, ...] = ()
        """What the processes gave up, known from the start on."""
        self._on_replace, self._on_recycle = on_replace, on_recycle
        self._decoders: set[Decoder] = set()
        self._idle: deque[Decoder] = deque()
        self._waiting: deque[asyncio.Future[Decoder]] = deque()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self.num_replaced = 0
        self.num_recycled = 0

    @property
    def num_alive(self) -> int:
        return sum(decoder.alive for decoder in self._decoders)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a decoder."""
        return len(self._waiting)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(decoder.pid for decoder in self._decoders)

    async def start(self) -> None:
        """Start every process and wait until each is ready.

        Raises:
            StartError: a process could not be started, or refused FFmpeg's version, or cannot have the sandbox that is
                required.
        """
        prepare()
        outcomes = await asyncio.gather(*(self._add() for _ in range(self.num_workers)), return_exceptions=True)
        for error in filter(None, outcomes):
            if isinstance(error, OSError | EOFError):  # of which TimeoutError is one
                raise StartError(f"a decoder process could not be started: {str(error) or type(error).__name__}")
            raise error
        log.info("decoder processes, by %s: %s", self.policy.device, _describe(self.layers))

    async def close(self) -> None:
        """End every process. Requests under way get `DecoderCrashed`."""
        self._closing = True
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(decoder.end() for decoder in self._decoders))
        self._decoders.clear()

    async def decode(self, source: Path | int, sampling: Sampling, deadline: float) -> Decoded[Clip]:
        """Decode in the next free process.

        Args:
            source: a file, or the descriptor of one that is open.
            deadline: by `time.monotonic()`; past it the process is killed and replaced.

        Raises:
            RequestError: what `decode_clip` raised; DeadlineExceeded; DecoderCrashed.
        """
        return await self._run(deadline, lambda decoder, *limits: decoder.decode(source, sampling, *limits))

    async def decode_windows(
        self, source: Path | int, sampling: Sampling, windowing: Windowing, take: Take, deadline: float
    ) -> Decoded[ClipInfo]:
        """As `decode`, window by window.

        Args:
            take: called with each window; the decoder is at most one window ahead of it. What it raises ends the work.

        Raises:
            RequestError: as `decode`, and what `decode_windows` and `take` raised.
        """
        return await self._run(
            deadline, lambda decoder, *limits: decoder.decode_windows(source, sampling, windowing, take, *limits)
        )

    async def _run(self, deadline: float, work: Callable[[Decoder, float, int], Awaitable[T]]) -> Decoded[T]:
        """Work with the next free process. It gets the seconds after which to end itself, and the number of threads."""
        with stage("queue") as queue:
            decoder = await self._take(deadline)
        with stage("decode") as decode:
            result = await self._work_with(decoder, deadline, work)
        return Decoded(result, queue.seconds, decode.seconds)

    async def _work_with(
        self, decoder: Decoder, deadline: float, work: Callable[[Decoder, float, int], Awaitable[T]]
    ) -> T:
        taken = time.monotonic()
        if taken >= deadline:  # its turn came in the moment in which it was too late to begin
            self._offer(decoder)
            raise DeadlineExceeded("no decoder was free before the deadline")
        threads = min(self._max_threads, 1 + self.num_idle)
        try:
            async with asyncio.timeout(deadline - taken):
                return await work(decoder, deadline - taken + GRACE_S, threads)
        except TimeoutError:
            raise DeadlineExceeded(
                f"decoding was not done in the {time.monotonic() - taken:.1f} s that were left"
            ) from None
        except FAILURES:
            decoder.kill()
            raise DecoderCrashed(await decoder.last_words()) from None
        finally:
            # A cancelled request lands here too: its decoder is in the middle of something, and nobody wants it.
            if not (decoder.done and decoder.alive):
                self._replace(decoder)
            elif reason := decoder.worn:
                self._recycle(decoder, reason)
            else:
                self._offer(decoder)

    async def _take(self, deadline: float) -> Decoder:
        while True:
            decoder = self._idle.popleft() if self._idle else await self._wait(deadline)
            if decoder.alive:
                return decoder
            self._replace(decoder)  # it died while idle, which is no request's fault

    async def _wait(self, deadline: float) -> Decoder:
        turn: asyncio.Future[Decoder] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        decoder = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                decoder = await turn
        except TimeoutError:
            raise DeadlineExceeded("no decoder was free before the deadline") from None
        finally:
            if decoder is None and turn.done() and not turn.cancelled():
                self._offer(turn.result())  # its turn came in the moment in which it gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
        return decoder

    def _offer(self, decoder: Decoder) -> None:
        """Hand a decoder to whoever waits longest. Nobody who comes later can slip in between."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # it has not given up
                turn.set_result(decoder)
                return
        self._idle.append(decoder)

    async def _add(self) -> None:
        decoder = await Decoder.start(self.clip_bytes, self.policy)
        self.layers = decoder.layers
        self._decoders.add(decoder)
        self._offer(decoder)

    def _replace(self, decoder: Decoder) -> None:
        if not self._closing:
            log.warning("decoder process %d is replaced: it died, hung, or nobody wants its clip any more", decoder.pid)
            self.num_replaced += 1
            self._on_replace()
        self._renew(decoder)

    def _recycle(self, decoder: Decoder, reason: str) -> None:
        if not self._closing:
            log.info("decoder process %d is renewed after %d clips: %s", decoder.pid, decoder.num_clips, reason)
            self.num_recycled += 1
            self._on_recycle(reason)
        self._renew(decoder)

    def _renew(self, decoder: Decoder) -> None:
        decoder.kill()
        self._decoders.discard(decoder)
        if not self._closing:
            task = asyncio.get_running_loop().create_task(self._start_another(decoder))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _start_another(self, dead: Decoder) -> None:
        delay_s = 0.1
        while not self._closing:
            try:
                await self._add()
                break
            except (OSError, EOFError, StartError):
                log.exception("a decoder process could not be started; trying again in %.1f s", delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, 5.0)
        await dead.end()


def _describe(layers: tuple[Layer, ...]) -> str:
    if not layers:
        return "NOT in a sandbox, as the settings say"
    return "; ".join(f"{layer.name} {'' if layer.enforced else 'NOT enforced: '}({layer.detail})" for layer in layers)

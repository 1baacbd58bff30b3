"""Live video in, frames out, at the pace of whoever takes them: single pictures, or one encoded stream."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from service.errors import Busy, DeadlineExceeded, DecoderCrashed, RequestError, UndecodableVideo
from service.video.child import Policy
from service.video.process import FAILURES, Decoder
from service.video.sampling import Sampling
from service.video.workers import DecodePool

MAX_PICTURES = 8
"""That are decoded in one go, or wait."""
MAX_WAITING_BYTES = 1 << 20
"""Of pictures that wait, where it is more than one."""

MAX_CPU_S = 30 * 24 * 3600
"""Of a stream's decoder: a video that is still being made may go on for days. One that hangs is ended by `feed`."""


@dataclass(frozen=True)
class Piece:
    """frames: uint8 [time, height, width, 3]; when each is shown, where that is known, in seconds from the first."""

    frames: np.ndarray
    times_s: list[float | None]


class Source(Protocol):
    """What a client sends. `feed` waits where more came than was taken, so that nothing piles up."""

    warnings: list[str]
    """What went otherwise than a player would expect; complete at the end."""

    @property
    def pending(self) -> bool:
        """Whether something is there that was not taken yet, though the client waits for it."""

    async def feed(self, data: bytes) -> None: ...

    def finish(self) -> None:
        """Nothing more comes."""

    async def ready(self) -> bool:
        """Wait for the next piece; False at the end."""

    async def take(self) -> Piece:
        """That piece."""


class Pictures:
    """JPEG pictures, one a message, decoded by whichever process is free; those that wait for each other together.

    Args:
        deadline_s: for the decoding of a piece.
    """

    def __init__(self, pool: DecodePool, sampling: Sampling, deadline_s: float) -> None:
        self.warnings: list[str] = []
        self._pool, self._sampling, self._deadline_s = pool, sampling, deadline_s
        self._most = min(MAX_PICTURES, sampling.num_frames)  # a decoder has room for the model's clips
        self._waiting: deque[bytes] = deque()
        self._num_taken = 0
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def pending(self) -> bool:
        return bool(self._waiting)

    async def feed(self, data: bytes) -> None:
        while self._waiting and (
            len(self._waiting) >= self._most or len(data) + sum(map(len, self._waiting)) > MAX_WAITING_BYTES
        ):
            await self._change()
        self._waiting.append(data)
        self._changed.set()

    def finish(self) -> None:
        self._ended = True
        self._changed.set()

    async def ready(self) -> bool:
        while not self._waiting and not self._ended:
            await self._change()
        return bool(self._waiting)

    async def take(self) -> Piece:
        """Pictures that came up to now. They count as waiting until they are decoded."""
        pictures = list(self._waiting)
        sampling = self._sampling.every(len(pictures))
        with _in_memory(as_video(pictures)) as descriptor:
            decoded = await self._pool.decode(descriptor, sampling, time.monotonic() + self._deadline_s)
        clip = decoded.result
        for number, shown_s in enumerate(clip.info.times_s):
            if shown_s != number:
                raise UndecodableVideo(
                    f"expected a JPEG picture, got something else as number {self._num_taken + number} of the stream"
                )
        for _ in pictures:
            self._waiting.popleft()
        self._num_taken += len(pictures)
        self._changed.set()
        return Piece(clip.frames, [None] * len(pictures))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Encoded:
    """One encoded stream in a container that can be read as it comes, in a decoder process of its own."""

    def __init__(
        self,
        decoder: Decoder,
        frames: AsyncIterator[tuple[np.ndarray, float | None]],
        writer: asyncio.StreamWriter,
        warnings: list[str],
        deadline_s: float,
    ) -> None:
        self.warnings = warnings
        self._decoder, self._frames, self._writer, self._deadline_s = decoder, frames, writer, deadline_s
        self._next: tuple[np.ndarray, float | None] | None = None

    @property
    def pending(self) -> bool:
        """What is not decoded yet is told by `feed`, which does not wait for longer than the deadline."""
        return self._next is not None

    async def feed(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                self._writer.write(data)
                await self._writer.drain()
        except TimeoutError:
            raise DeadlineExceeded(f"the stream's decoder took nothing for {self._deadline_s:g} s") from None
        except ConnectionError:
            pass  # the decoder wants no more, and `ready` knows why

    def finish(self) -> None:
        if not self._writer.is_closing():
            self._writer.write_eof()

    async def ready(self) -> bool:
        try:
            self._next = await anext(self._frames, None)
        except RequestError:
            raise
        except FAILURES:
            self._decoder.kill()
            raise DecoderCrashed(await self._decoder.last_words()) from None
        return self._next is not None

    async def take(self) -> Piece:
        assert self._next is not None
        frame, time_s = self._next
        self._next = None
        return Piece(frame[None], [time_s])


class LiveDecoders:
    """Decoder processes for encoded streams: started for each, and ended with it.

    Args:
        limit: how many; one more is `Busy`.
    """

    def __init__(self, limit: int, policy: Policy) -> None:
        self.limit = limit
        self.num_live = 0
        limits = replace(policy.limits, cpu_s=MAX_CPU_S)
        self._policy = replace(policy, device="cpu", limits=limits)  # a GPU takes no stream that cannot be wound back

    @asynccontextmanager
    async def open(self, sampling: Sampling, rate: float | None, deadline_s: float) -> AsyncIterator[Encoded]:
        """A process for a stream.

        Args:
            rate: pictures a second that count; every one without it.
            deadline_s: for what comes until it is taken.

        Raises:
            Busy: at the limit, or no process can be started.
        """
        if self.num_live >= self.limit:
            raise Busy(f"{self.limit} encoded streams are being decoded, the limit", retry_after_s=1.0)
        self.num_live += 1
        try:
            try:
                decoder = await Decoder.start(sampling.every(1).clip_bytes, self._policy)
            except (OSError, EOFError) as error:
                raise Busy("no decoder process could be started for the stream", retry_after_s=1.0) from error
            try:
                ours, theirs = socket.socketpair()
                with theirs:
                    _, writer = await asyncio.open_connection(sock=ours)
                    writer.transport.set_write_buffer_limits(0)  # one piece waits, and not many tiny ones
                    try:
                        warnings: list[str] = []
                        frames = decoder.follow(theirs.fileno(), sampling, rate, warnings)
                        yield Encoded(decoder, frames, writer, warnings, deadline_s)
                    finally:
                        writer.transport.abort()
            finally:
                await decoder.end()
        finally:
            self.num_live -= 1


def as_video(pictures: list[bytes]) -> bytes:
    """JPEG pictures as one video, an IVF file, shown a second each: the same way into a decoder as for any other."""
    head = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"MJPG", 0, 0, 1, 1, len(pictures), 0)
    return head + b"".join(
        part for number, data in enumerate(pictures) for part in (struct.pack("<IQ", len(data), number), data)
    )


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """The descriptor of a file without a name."""
    in_memory = hasattr(os, "memfd_create")
    with os.fdopen(os.memfd_create("ttvideo"), "w+b") if in_memory else tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()

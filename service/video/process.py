"""One decoder process, as its parent holds it. What runs inside is `child`.

The two talk in lines of JSON and not in pickles: a decoder that a crafted file took over must not run code in the
parent. The upload goes in as an open descriptor, the pixels come out in shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from service.errors import BY_CODE, NotAVideo, StartError
from service.video import child
from service.video.assembly import WindowInfo
from service.video.child import GO_ON, Policy
from service.video.decode import Clip, ClipInfo
from service.video.sampling import Sampling
from service.video.sandbox import Layer
from service.video.windows import Windowing

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 1 << 20

_INFO = TypeAdapter(ClipInfo)
_WINDOW = TypeAdapter(WindowInfo)

Take = Callable[[np.ndarray, WindowInfo], Awaitable[None]]
"""Takes a window's clip, uint8 [time, height, width, 3], and what is known of it."""

# A process forked from a small server that has FFmpeg loaded already starts in milliseconds.
_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context = multiprocessing.get_context(_method)


def prepare() -> None:
    """Start the process that decoders are forked from. Returns at once, while it is still importing."""
    if _method == "forkserver":
        _context.set_forkserver_preload([child.__name__])
        forkserver.ensure_running()


FAILURES = (OSError, EOFError, ValueError, LookupError, TypeError, RecursionError)
"""Of talking with a decoder process: it is gone, or what it says makes no sense, and then it is not to be trusted with
anything any more."""


class Decoder:
    """One process, its socket, and the shared memory that it decodes into."""

    layers: tuple[Layer, ...]
    """What the process gave up, in words."""

    def __init__(
        self,
        process: BaseProcess,
        slot: SharedMemory,
        channel: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        policy: Policy,
    ) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.num_clips = 0
        self.done = True
        """Whether it has answered all that it was asked."""
        self.driver_bytes = 0
        """Resident from the start on, where a GPU's driver is."""
        self._process, self._slot, self._channel, self._policy = process, slot, channel, policy
        self._reader, self._writer = reader, writer
        self._destroy = weakref.finalize(self, _destroy, process, slot)

    @classmethod
    async def start(cls, slot_bytes: int, policy: Policy) -> Decoder:
        """Start a process and wait until it is ready.

        Raises:
            StartError: it refuses FFmpeg's version, or a sandbox that is required and not to be had.
        """
        slot = SharedMemory(create=True, size=slot_bytes)
        ours, theirs = socket.socketpair()
        process = _context.Process(  # type: ignore[attr-defined]
            target=child.serve, args=(theirs, slot.name, policy), name="ttvideo-decoder", daemon=True
        )
        try:
            with theirs:
                await asyncio.to_thread(process.start)
        except BaseException:
            ours.close()
            slot.close()
            slot.unlink()
            raise
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_REPLY_BYTES)
        decoder = cls(process, slot, ours, reader, writer, policy)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                hello = await decoder._reply()
            if hello["refusal"]:
                raise StartError(hello["refusal"])
            decoder.layers = tuple(Layer(*layer) for layer in hello["layers"])
            if policy.device == "cuda":
                decoder.driver_bytes, _ = _usage(decoder.pid)
        except BaseException:
            decoder.kill()
            raise
        return decoder

    @property
    def alive(self) -> bool:
        return self._destroy.alive and not self._reader.at_eof()

    @property
    def worn(self) -> str | None:
        """Why the process should be renewed, though nothing is wrong with it."""
        if self.num_clips >= self._policy.max_clips:
            return "clips"
        rss_bytes, cpu_s = _usage(self.pid)
        if rss_bytes - self.driver_bytes > self._policy.max_rss_bytes:
            return "memory"
        # The other half is for the clip to come.
        return "cpu_time" if cpu_s > self._policy.limits.cpu_s / 2 else None

    async def decode(self, source: Path | int, sampling: Sampling, limit_s: float, threads: int) -> Clip:
        """Decode in the process, with so many threads; it ends itself after `limit_s`."""
        self._ask(source, {"sampling": sampling.model_dump(), "limit_s": limit_s, "threads": threads})
        info = self._last(await self._reply())
        return Clip(self._frames(sampling), info)

    async def decode_windows(
        self,
        source: Path | int,
        sampling: Sampling,
        windowing: Windowing,
        take: Take,
        limit_s: float,
        threads: int,
    ) -> ClipInfo:
        """As `decode`, window by window. The process decodes the next while `take` has the last, and then waits."""
        job = {"sampling": sampling.model_dump(), "limit_s": limit_s, "threads": threads}
        self._ask(source, {**job, "windowing": windowing.model_dump()})
        num_windows = 0
        while "window" in (reply := await self._reply()):
            num_windows += 1
            if num_windows > windowing.max_windows:
                raise ValueError("more windows than may be")
            window, frames = _WINDOW.validate_python(reply["window"]), self._frames(sampling)
            self._writer.write(GO_ON)
            await take(frames, window)
        return self._last(reply)

    def _ask(self, source: Path | int, job: dict[str, Any]) -> None:
        self.num_clips += 1
        with contextlib.ExitStack() as opened:
            if isinstance(source, Path):
                try:
                    source = opened.enter_context(source.open("rb", buffering=0)).fileno()
                except OSError as error:
                    raise NotAVideo(f"expected a file that can be read: {error.strerror}") from error
            line = json.dumps(job).encode() + b"\n"
            self.done = False
            # asyncio sends no descriptors. The socket is empty between two clips, so this neither blocks nor splits.
            sent = socket.send_fds(self._channel, [line], [source])
        if sent != len(line):
            raise BlockingIOError(f"the decoder process took {sent} of {len(line)} bytes")

    def _last(self, reply: dict[str, Any]) -> ClipInfo:
        self.done = True
        if "error" in reply:
            if "traceback" in reply:
                log.warning("decoding failed in an unforeseen way\n%s", reply["traceback"])
            raise BY_CODE[reply["error"]](reply["detail"])
        return _INFO.validate_python(reply["info"])

    def _frames(self, sampling: Sampling) -> np.ndarray:
        return np.ndarray(sampling.clip_shape, np.uint8, self._slot.buf).copy()

    async def follow(
        self, stream: int, sampling: Sampling, rate: float | None, warnings: list[str]
    ) -> AsyncIterator[tuple[np.ndarray, float | None]]:
        """Decode a stream as it comes, to its end: frames uint8 [height, width, 3], and their times in seconds.

        The process goes on with the next one when it is asked for. It is not to be used for anything else afterwards.

        Args:
            stream: the descriptor of a pipe or socket.
            warnings: get what went otherwise than a player would expect, at the end.

        Raises:
            RequestError: what `live.watch` raised.
        """
        job = {"sampling": sampling.model_dump(), "limit_s": 0, "live": {"rate": rate}}
        socket.send_fds(self._channel, [json.dumps(job).encode() + b"\n"], [stream])
        while "time_s" in (reply := await self._reply()):
            frame = np.ndarray(sampling.clip_shape[1:], np.uint8, self._slot.buf).copy()
            yield frame, None if reply["time_s"] is None else float(reply["time_s"])
            self._writer.write(GO_ON)
        if "error" in reply:
            raise BY_CODE[reply["error"]](reply["detail"])
        warnings += map(str, reply["warnings"])

    async def _reply(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the decoder process ended")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def last_words(self) -> str:
        """How the process ended, for people."""
        with contextlib.suppress(ValueError):  # of a pool that is being closed
            await asyncio.to_thread(self._process.join, END_TIMEOUT_S)
            code = self._process.exitcode
            if code is not None and code < 0:
                return f"the decoder process was ended by {signal.Signals(-code).name}"
        return "the decoder process ended unexpectedly"

    def kill(self) -> None:
        """End the process at once and give its memory back."""
        self._destroy()
        self._writer.close()

    async def end(self) -> None:
        """Kill, and wait until nothing is left."""
        self.kill()
        await asyncio.to_thread(self._process.join, END_TIMEOUT_S)
        self._process.close()


def _destroy(process: BaseProcess, slot: SharedMemory) -> None:
    process.kill()
    slot.close()
    slot.unlink()


def _usage(pid: int) -> tuple[int, float]:
    """Resident bytes and seconds of processor time; nothing where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0, 0.0
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")

"""Decoder processes, started before the first request.

A file that crashes or hangs FFmpeg costs its own request and nothing else: the process is replaced. The parent side
is a pool for asyncio; one process decodes one clip at a time, straight into memory that it shares with the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import signal
import socket
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import BY_CODE, DeadlineExceeded, DecoderCrashed, RequestError, StartError, UndecodableVideo
from service.video.decode import Clip, ClipInfo, check_ffmpeg, decode_clip
from service.video.sampling import Sampling

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 1 << 20
GRACE_S = 1.0
"""Past a clip's deadline by this much a decoder ends itself, should the parent no longer be there to do it."""

# A process forked from a small server that has FFmpeg loaded already starts in milliseconds.
_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context = multiprocessing.get_context(_method)


def prepare() -> None:
    """Start the process that decoders are forked from. Returns at once, while it is still importing."""
    if _method == "forkserver":
        _context.set_forkserver_preload([__name__])
        forkserver.ensure_running()


@dataclass(frozen=True)
class Decoded:
    """A clip and where its time went."""

    clip: Clip
    queue_s: float
    decode_s: float


class DecodePool:
    """Decoder processes for asyncio, first come first served.

    Args:
        num_workers: processes.
        clip_bytes: the largest clip that will be asked for.
        on_replace: called whenever a process was killed or died and another takes its place.
    """

    def __init__(self, num_workers: int, clip_bytes: int, *, on_replace: Callable[[], None] = lambda: None) -> None:
        self.num_workers = num_workers
        self.clip_bytes = clip_bytes
        self._on_replace = on_replace
        self._decoders: set[_Decoder] = set()
        self._idle: deque[_Decoder] = deque()
        self._waiting: deque[asyncio.Future[_Decoder]] = deque()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self.num_replaced = 0

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
            StartError: a process could not be started, or refused FFmpeg's version.
        """
        prepare()
        outcomes = await asyncio.gather(*(self._add() for _ in range(self.num_workers)), return_exceptions=True)
        for error in filter(None, outcomes):
            if isinstance(error, OSError | EOFError):  # of which TimeoutError is one
                raise StartError(f"a decoder process could not be started: {str(error) or type(error).__name__}")
            raise error

    async def close(self) -> None:
        """End every process. Requests under way get `DecoderCrashed`."""
        self._closing = True
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(decoder.end() for decoder in self._decoders))
        self._decoders.clear()

    async def decode(self, path: Path, sampling: Sampling, deadline: float) -> Decoded:
        """Decode in the next free process.

        Args:
            deadline: by `time.monotonic()`; past it the process is killed and replaced.

        Raises:
            RequestError: what `decode_clip` raised; DeadlineExceeded; DecoderCrashed.
        """
        asked = time.monotonic()
        decoder = await self._take(deadline)
        taken = time.monotonic()
        healthy = False
        try:
            async with asyncio.timeout(deadline - taken):
                clip = await decoder.decode(path, sampling, deadline - taken + GRACE_S)
            healthy = True
        except RequestError:
            healthy = True
            raise
        except TimeoutError:
            raise DeadlineExceeded(f"decoding was not done {time.monotonic() - asked:.1f} s after the upload") from None
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            # It is gone, or what it says makes no sense: then it is not to be trusted with anything any more.
            decoder.kill()
            raise DecoderCrashed(await decoder.last_words()) from None
        finally:
            # A cancelled request lands here too: its decoder is in the middle of something, and nobody wants it.
            if healthy:
                self._offer(decoder)
            else:
                self._replace(decoder)
        return Decoded(clip, taken - asked, time.monotonic() - taken)

    async def _take(self, deadline: float) -> _Decoder:
        while True:
            decoder = self._idle.popleft() if self._idle else await self._wait(deadline)
            if decoder.alive:
                return decoder
            self._replace(decoder)  # it died while idle, which is no request's fault

    async def _wait(self, deadline: float) -> _Decoder:
        turn: asyncio.Future[_Decoder] = asyncio.get_running_loop().create_future()
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

    def _offer(self, decoder: _Decoder) -> None:
        """Hand a decoder to whoever waits longest. Nobody who comes later can slip in between."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # it has not given up
                turn.set_result(decoder)
                return
        self._idle.append(decoder)

    async def _add(self) -> None:
        decoder = await _Decoder.start(self.clip_bytes)
        self._decoders.add(decoder)
        self._offer(decoder)

    def _replace(self, decoder: _Decoder) -> None:
        decoder.kill()
        self._decoders.discard(decoder)
        if self._closing:
            return
        log.warning("decoder process %d is replaced: it died, hung, or nobody wants its clip any more", decoder.pid)
        self.num_replaced += 1
        self._on_replace()
        task = asyncio.get_running_loop().create_task(self._start_another(decoder))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _start_another(self, dead: _Decoder) -> None:
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


class _Decoder:
    """One process, its socket, and the shared memory that it decodes into."""

    def __init__(
        self, process: BaseProcess, slot: SharedMemory, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process, self._slot, self._reader, self._writer = process, slot, reader, writer
        self._destroy = weakref.finalize(self, _destroy, process, slot)

    @classmethod
    async def start(cls, slot_bytes: int) -> _Decoder:
        slot = SharedMemory(create=True, size=slot_bytes)
        ours, theirs = socket.socketpair()
        process = _context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, slot.name), name="ttvideo-decoder", daemon=True
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
        decoder = cls(process, slot, reader, writer)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                refusal = (await decoder._reply())["refusal"]
            if refusal:
                raise StartError(refusal)
        except BaseException:
            decoder.kill()
            raise
        return decoder

    @property
    def alive(self) -> bool:
        return self._destroy.alive and not self._reader.at_eof()

    async def decode(self, path: Path, sampling: Sampling, limit_s: float) -> Clip:
        job = {"path": str(path), "sampling": sampling.model_dump(), "limit_s": limit_s}
        self._writer.write(json.dumps(job).encode() + b"\n")
        reply = await self._reply()
        if "error" in reply:
            if "traceback" in reply:
                log.warning("decoding failed in an unforeseen way\n%s", reply["traceback"])
            raise BY_CODE[reply["error"]](reply["detail"])
        facts: dict[str, Any] = reply["info"]
        info = ClipInfo(**facts | {name: tuple(facts[name]) for name in ("times_s", "warnings")})
        return Clip(np.ndarray(sampling.clip_shape, np.uint8, self._slot.buf).copy(), info)

    async def _reply(self) -> dict[str, Any]:
        # JSON and not pickle: a decoder that a crafted file took over must not run code in the parent.
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


# --- in the decoder process -------------------------------------------------------------------------------------


def _serve(channel: socket.socket, slot_name: str) -> None:
    """Answer jobs, one JSON line each, until the parent closes the socket or dies."""
    # The parent decides when this process ends, also where a signal goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slot = SharedMemory(slot_name)
    try:
        check_ffmpeg()
        refusal = None
    except StartError as error:
        refusal = str(error)
    with channel, channel.makefile("rb") as jobs:
        try:
            channel.sendall(json.dumps({"refusal": refusal}).encode() + b"\n")
            for line in jobs:
                job = json.loads(line)
                signal.setitimer(signal.ITIMER_REAL, max(job["limit_s"], 0.001))
                reply = _run(job, slot)
                signal.setitimer(signal.ITIMER_REAL, 0)
                channel.sendall(json.dumps(reply).encode() + b"\n")
        except ConnectionError:
            pass
    slot.close()


def _run(job: dict[str, Any], slot: SharedMemory) -> dict[str, Any]:
    sampling = Sampling.model_validate(job["sampling"])
    try:
        clip = decode_clip(Path(job["path"]), sampling, np.ndarray(sampling.clip_shape, np.uint8, slot.buf))
    except RequestError as error:
        return {"error": error.code, "detail": error.detail}
    except Exception as error:
        # The file led PyAV where nobody has been: that is the file's fault before it is the service's.
        detail = f"expected a video, got something that fails with {type(error).__name__}"
        return {"error": UndecodableVideo.code, "detail": detail, "traceback": traceback.format_exc()}
    return {"info": asdict(clip.info)}

"""One decoder process: the parent's handle on it, and what runs inside.

The two talk in lines of JSON and not in pickles: a decoder that a crafted file took over must not run code in the
parent. The upload goes in as an open descriptor, the pixels come out in shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import stat
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import av.error
import av.logging
import av.subtitles.codeccontext  # PyAV imports these two at their first need, when no file can be opened any more
import av.subtitles.stream
import numpy as np
from pydantic import TypeAdapter

from service.errors import BY_CODE, NotAVideo, RequestError, StartError, TooMuchMemory, UndecodableVideo
from service.video.assembly import WindowInfo
from service.video.bounds import Bounds
from service.video.decode import Clip, ClipInfo, decode_clip, decode_windows
from service.video.device import Accelerator, Device
from service.video.live import watch
from service.video.probe import check_ffmpeg, demux, open_video, video_stream
from service.video.sampling import Sampling
from service.video.sandbox import DRIVER_NEEDS, Layer, Limits, Mode, enter
from service.video.timeline import Notes
from service.video.windows import Windowing

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
MAX_JOB_BYTES = 1 << 16
MAX_REPLY_BYTES = 1 << 20
FEW_PACKETS = 4
GO_ON = b"\n"
"""Says to a decoder that what it handed over was taken."""
_NO_BUFFER = re.compile(r"get_buffer\(\) failed|allocate memory")
"""FFmpeg's words for a picture that there is no memory for."""
_LESS_MEMORY = "expected a video that can be decoded in the memory that a decoder has"

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
        _context.set_forkserver_preload([__name__])
        forkserver.ensure_running()


@dataclass(frozen=True)
class Policy:
    """What a decoder process takes on, may do, and how long it lives."""

    bounds: Bounds = field(default_factory=Bounds)
    sandbox: Mode = "auto"
    limits: Limits = field(default_factory=Limits)
    device: Device = "cpu"
    """What decodes."""
    device_id: int = 0
    max_clips: int = 1000
    max_rss_bytes: int = 512 << 20
    """A process above it is renewed after its clip. What a GPU's driver takes at the start does not count."""


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
            target=_serve, args=(theirs, slot.name, policy), name="ttvideo-decoder", daemon=True
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


# --- in the decoder process -------------------------------------------------------------------------------------


def _serve(channel: socket.socket, slot_name: str, policy: Policy) -> None:
    """Answer jobs, one JSON line each, until the parent closes the socket or dies."""
    # The parent decides when this process ends, also where a signal goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slot = SharedMemory(slot_name)
    _close_pipes()
    with channel, contextlib.suppress(ConnectionError):
        try:
            check_ffmpeg()
            accelerator = _accelerator(policy)
            hello: dict[str, Any] = {"refusal": None, "layers": _give_up(policy)}
        except StartError as error:
            hello = {"refusal": str(error)}
        channel.sendall(json.dumps(hello).encode() + b"\n")
        while True:
            line, descriptors, _, _ = socket.recv_fds(channel, MAX_JOB_BYTES, 1)
            if not descriptors:
                break
            job = json.loads(line)
            if "live" in job:
                reply = _follow(channel, descriptors[0], job, slot, policy.bounds)
                channel.sendall(json.dumps(reply).encode() + b"\n")
                break
            signal.setitimer(signal.ITIMER_REAL, max(job["limit_s"], 0.001))
            sampling = Sampling.model_validate(job["sampling"])
            windowing = Windowing.model_validate(job["windowing"]) if "windowing" in job else None
            reply = _run(
                descriptors[0],
                sampling,
                slot,
                policy.bounds,
                job["threads"],
                accelerator,
                windowing=windowing,
                hand_over=lambda window: _hand_over(channel, {"window": asdict(window)}),
            )
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.close(descriptors[0])
            channel.sendall(json.dumps(reply).encode() + b"\n")
    slot.close()


def _close_pipes() -> None:
    """They lead to the server that forked this process, and to the one that unlinks forgotten shared memory."""
    listing = Path("/dev/fd")
    for descriptor in [int(entry.name) for entry in listing.iterdir()] if listing.exists() else []:
        with contextlib.suppress(OSError):  # the listing's own
            if descriptor > 2 and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.close(descriptor)


def _accelerator(policy: Policy) -> Accelerator | None:
    """Open the GPU, before there is a sandbox that would keep its driver from its files.

    Raises:
        StartError: it does not decode, or it was asked for beside a sandbox that cannot be.
    """
    if policy.device == "cpu":
        return None
    if policy.sandbox == "required":
        raise StartError(f"a full sandbox is required for decoders, and it cannot hold one on a GPU: {DRIVER_NEEDS}")
    return Accelerator(policy.device_id)


def _give_up(policy: Policy) -> list[Layer]:
    """Enter the sandbox.

    Raises:
        StartError: it is required, and the kernel cannot give all of it.
    """
    if policy.sandbox == "off":
        return []
    layers = enter(policy.limits, with_driver=policy.device == "cuda")
    missing = [f"{layer.name} ({layer.detail})" for layer in layers if not layer.enforced]
    if missing and policy.sandbox == "required":
        raise StartError(f"a full sandbox is required for decoders, and this system lacks {', '.join(missing)}")
    return layers


def _hand_over(channel: socket.socket, what: dict[str, Any]) -> None:
    """Say what lies in the slot, and wait until it was taken."""
    channel.sendall(json.dumps(what).encode() + b"\n")
    if not channel.recv(len(GO_ON)):
        raise ConnectionResetError("the parent is gone")


def _run(
    descriptor: int,
    sampling: Sampling,
    slot: SharedMemory,
    bounds: Bounds,
    threads: int = 1,
    accelerator: Accelerator | None = None,
    *,
    windowing: Windowing | None = None,
    hand_over: Callable[[WindowInfo], None] = lambda window: None,
) -> dict[str, Any]:
    try:
        frames = np.ndarray(sampling.clip_shape, np.uint8, slot.buf)
        if windowing is None:
            info = decode_clip(descriptor, sampling, frames, bounds, threads, accelerator).info
        else:
            info = decode_windows(descriptor, sampling, windowing, hand_over, frames, bounds, threads, accelerator)
        return {"info": asdict(info)}
    except ConnectionError:
        raise
    except UndecodableVideo as undecodable:
        error = _why_undecodable(descriptor, bounds) or undecodable
    except RequestError as refusal:
        error = refusal
    except MemoryError:
        error = TooMuchMemory(_LESS_MEMORY)
    except Exception as unforeseen:
        reason = _why_undecodable(descriptor, bounds)
        if reason is None:
            # The file led PyAV where nobody has been: that is the file's fault before it is the service's.
            detail = f"expected a video, got something that fails with {type(unforeseen).__name__}"
            return {"error": UndecodableVideo.code, "detail": detail, "traceback": traceback.format_exc()}
        error = reason
    return {"error": error.code, "detail": error.detail}


def _follow(
    channel: socket.socket, descriptor: int, job: dict[str, Any], slot: SharedMemory, bounds: Bounds
) -> dict[str, Any]:
    """Hand over a live stream, picture by picture. What comes last."""
    sampling, notes = Sampling.model_validate(job["sampling"]), Notes()
    out = np.ndarray(sampling.clip_shape[1:], np.uint8, slot.buf)
    try:
        for time_s in watch(descriptor, sampling, job["live"]["rate"], out, bounds, notes):
            _hand_over(channel, {"time_s": time_s})
        return {"warnings": notes.warnings}
    except ConnectionError:
        raise
    except RequestError as error:
        return {"error": error.code, "detail": error.detail}
    except MemoryError:
        return {"error": TooMuchMemory.code, "detail": _LESS_MEMORY}
    except Exception as unforeseen:
        detail = f"expected a video, got something that fails with {type(unforeseen).__name__}"
        return {"error": UndecodableVideo.code, "detail": detail}


def _why_undecodable(descriptor: int, bounds: Bounds) -> RequestError | None:
    """What FFmpeg says, on a second look, of a video that gave no picture: an error with a better name, if any."""
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # it would hold back what was said of the video before, or say it again
    try:
        with (
            av.logging.Capture() as said,
            contextlib.suppress(av.error.FFmpegError),
            open_video(descriptor, bounds) as container,
        ):
            for packet in itertools.islice(demux(container, video_stream(container, bounds)), FEW_PACKETS):
                with contextlib.suppress(av.error.FFmpegError):
                    packet.decode()
        messages = [message for _, _, message in said]
        bounds.check_words(messages)
    except RequestError as error:
        return error
    except Exception:
        return None  # what went wrong at the first look is known already
    finally:
        av.logging.set_level(None)
    return TooMuchMemory(_LESS_MEMORY) if any(map(_NO_BUFFER.search, messages)) else None

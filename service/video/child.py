"""What runs inside a decoder process: it answers jobs, one after the other, until its parent is gone."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import av.error
import av.logging
import av.subtitles.codeccontext  # PyAV imports these two at their first need, when no file can be opened any more
import av.subtitles.stream
import numpy as np

from service.errors import RequestError, StartError, TooMuchMemory, UndecodableVideo
from service.video.assembly import WindowInfo
from service.video.bounds import Bounds
from service.video.decode import decode_clip, decode_windows
from service.video.device import Accelerator, Device
from service.video.live import watch
from service.video.probe import check_ffmpeg, demux, open_video, video_stream
from service.video.sampling import Sampling
from service.video.sandbox import DRIVER_NEEDS, Layer, Limits, Mode, enter
from service.video.timeline import Notes
from service.video.windows import Windowing

MAX_JOB_BYTES = 1 << 16
GO_ON = b"\n"
"""Says to a decoder that what it handed over was taken."""
FEW_PACKETS = 4
_NO_BUFFER = re.compile(r"get_buffer\(\) failed|allocate memory")
"""FFmpeg's words for a picture that there is no memory for."""
_LESS_MEMORY = "expected a video that can be decoded in the memory that a decoder has"


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


def serve(channel: socket.socket, slot_name: str, policy: Policy) -> None:
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
            hello: dict[str, Any] = {"refusal": None, "layers": give_up(policy)}
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
            reply = run(
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


def give_up(policy: Policy) -> list[Layer]:
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


def run(
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

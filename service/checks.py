"""What `python -m service doctor` looks at: each check is a generator of findings, and may hang or raise StartError.

What a check needs is imported in it, since that may be what is broken.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from service import __version__
from service.errors import NotForClips, StartError
from service.settings import Settings

Status = Literal["ok", "note", "fault"]
"""A fault keeps the service from starting as its settings have it; a note does not."""


Found = Iterator[tuple[Status, str]]


def _python(settings: Settings) -> Found:
    yield "ok", f"{platform.python_version()} on {platform.platform()}, ttvideo {__version__}"


def _settings(settings: Settings) -> Found:
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    yield "ok", ", ".join(f"{name}={value}" for name, value in chosen.items()) or "the defaults"


def _ffmpeg(settings: Settings) -> Found:
    import av

    from service.video.probe import check_ffmpeg, supported

    check_ffmpeg()
    there = supported()
    yield "ok", f"FFmpeg {av.ffmpeg_version_info} in PyAV {av.__version__}"
    for kind, names in there.items():
        yield "ok" if names else "fault", f"{len(names)} {kind} may be read: {', '.join(names)}"


def _onnxruntime(settings: Settings) -> Found:
    installed = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    if len(installed) > 1:
        yield (
            "fault",
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files: pip uninstall -y "
            "onnxruntime onnxruntime-gpu, then install the one that is wanted",
        )
    import onnxruntime

    named = " and ".join(f"{name} {version}" for name, version in installed.items()) or onnxruntime.__version__
    yield "ok", f"{named}, built for {', '.join(onnxruntime.get_available_providers())}"


def _cuda(settings: Settings) -> Found:
    from service.engine.provider import cuda_fault

    fault = cuda_fault(settings.device_id)
    wanted = settings.provider == "cuda" or settings.decode_device == "cuda"
    if fault:
        yield "fault" if wanted else "note", f"cannot be used: {fault}"
    else:
        ruled_out = ", and ruled out by the settings" if settings.provider == "cpu" else ""
        yield "ok", f"every library is there, and device {settings.device_id}{ruled_out}"
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield "ok", driver.read_text().splitlines()[0]


def _cores(settings: Settings) -> Found:
    from service.cores import plan_cores

    plan = plan_cores(settings.decode_workers, settings.model_threads)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "ok", f"{os.cpu_count()} in this machine, {affinity} by affinity; of {plan}"
    if plan.decode_workers > plan.cores + 1:
        yield "note", f"{plan.decode_workers} decoder processes fight for {plan.cores:g} cores"


def _decoder(settings: Settings) -> Found:
    import asyncio

    from service.video.process import Decoder, prepare

    prepare()

    async def try_one() -> Decoder:
        decoder = await Decoder.start(1 << 20, settings.decoder_policy())
        await decoder.end()
        return decoder

    started = time.monotonic()
    decoder = asyncio.run(try_one())
    yield "ok", f"a process starts, by {settings.decode_device}, in {time.monotonic() - started:.2f} s"
    if not decoder.layers:
        yield "note", "no sandbox, as the settings say: a file that takes over a decoder has all that the service has"
    for layer in decoder.layers:
        state = "holds" if layer.enforced else "does NOT hold"
        yield "ok" if layer.enforced else "note", f"sandbox: {layer.name} {state}: {layer.detail}"


def _spool(settings: Settings) -> Found:
    from service.spool import Spool

    Spool(settings.spool_dir, settings.max_spool_bytes).check()
    where = Path(settings.spool_dir or tempfile.gettempdir())
    free = shutil.disk_usage(where).free
    room = f"{where} can be written, {free >> 20} MiB free"
    if free < settings.max_upload_bytes:
        yield "note", f"{room}: less than one upload of {settings.max_upload_bytes >> 20} MiB, which is answered 507"
    else:
        yield "ok", room
    if settings.max_upload_bytes <= free < settings.max_spool_bytes:
        yield "note", f"uploads may take {settings.max_spool_bytes >> 20} MiB together, which is more than is free"


def _models(settings: Settings) -> Found:
    from service.cores import plan_cores
    from service.engine.folder import default_model, model_files, own_files
    from service.engine.provider import Choice, choose
    from service.engine.repository import BUNDLED
    from service.engine.session import Session

    if settings.models is not None and not settings.models.is_dir():
        raise StartError(f"expected a folder of models (TTVIDEO_MODELS), found none at {settings.models}")
    try:
        choice = choose(settings.provider, settings.device_id)
    except StartError:  # a finding of another check; here it is looked at what the files are worth
        choice = Choice("cpu")
    bundled = model_files(BUNDLED)
    own = own_files(settings.models) if settings.models is not None else {}
    largest = 0
    for (name, version), path in sorted((bundled | own).items()):
        try:
            session = Session(path, choice)
        except StartError as error:
            yield "fault", f"{name}/{version} is refused: {error}"
            continue
        nodes = ", ".join(f"{count} nodes on {provider}" for provider, count in session.num_nodes.items())
        yield "ok", f"{name}/{version} runs on {session.provider}: {nodes}"
        with contextlib.suppress(NotForClips):
            largest = max(largest, session.clip_manifest().sampling.clip_bytes)
    num_workers = plan_cores(settings.decode_workers).decode_workers
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None
    if room is not None and room < num_workers * largest:
        yield (
            "fault",
            f"{num_workers} decoders hand over clips of {largest >> 10} KiB in /dev/shm, which has {room >> 10} KiB "
            "free (shm_size in Docker)",
        )
    name, fixed = default_model(settings.default_model, bundled | own, own, bundled)
    yield "ok", f"{name} answers by default, in its {f'version {fixed}' if fixed else 'latest version'}"


def _port(settings: Settings) -> Found:
    from service.server import listen

    listen(settings.host, settings.port).close()
    which = f"port {settings.port}" if settings.port else "a port"
    yield "ok", f"{which} on {settings.host} is free"


def _access(settings: Settings) -> Found:
    from service.keys import Keys

    keys = Keys(settings.api_keys.get_secret_value(), settings.api_keys_file)
    limit = "no limit" if settings.rate_limit is None else f"{settings.rate_limit:g} requests a second"
    if keys:
        yield "ok", f"API keys of {', '.join(keys.names) or 'nobody, so that nobody may ask'}; {limit} for each"
    elif settings.host in ("127.0.0.1", "::1", "localhost"):
        yield "ok", f"no API key is asked for, and only this machine can ask; {limit}"
    else:
        yield "note", f"no API key is asked for, and whoever reaches {settings.host} may ask; {limit}"


def _traces(settings: Settings) -> Found:
    from service.spans import INSTALL, asked_for

    asking = asked_for()
    if asking is None:
        yield "ok", "none, since no OTEL_* variable asks for them"
        return
    try:
        importlib.metadata.version("opentelemetry-sdk")
        importlib.metadata.version("opentelemetry-exporter-otlp-proto-http")
    except importlib.metadata.PackageNotFoundError as error:
        yield "note", f"{asking} asks for them, and there are none: {error.name} is not installed; {INSTALL}"
    else:
        yield "ok", f"{asking} asks for them"


CHECKS: dict[str, Callable[[Settings], Found]] = {
    "python": _python,
    "settings": _settings,
    "ffmpeg": _ffmpeg,
    "onnxruntime": _onnxruntime,
    "cuda": _cuda,
    "cores": _cores,
    "decoder": _decoder,
    "spool": _spool,
    "models": _models,
    "port": _port,
    "access": _access,
    "traces": _traces,
}

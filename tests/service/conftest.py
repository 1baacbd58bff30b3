"""Clips, models and running services for the tests of the service."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.engine.classifier import Classifier
from service.server import protocol_options
from service.settings import Settings
from tests.service import onnx_models
from ttmodels.data.encode import write_video

PATIENCE_S = 20.0
"""Long enough for anything that is going to happen at all."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE_S} s in vain until {what}")
        time.sleep(0.005)


async def eventually(condition: Callable[[], bool]) -> None:
    """`wait_until` for tests inside an event loop, which bound their time themselves."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def lives(pid: int) -> bool:
    """Whether there is such a process, and not just what is left of one until its parent looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def coloured_frames(
    colour: tuple[int, int, int], num_frames: int = 20, height: int = 48, width: int = 64
) -> np.ndarray:
    """A clip of one colour with a square that moves, uint8 [time, height, width, 3]."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = colour
    for i in range(num_frames):
        left = i * (width - 10) // num_frames
        frames[i, 10:20, left : left + 10] = 255
    return frames


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """red.mp4, green.mkv, blue.avi."""
    folder = tmp_path_factory.mktemp("clips")
    colours = {"red.mp4": (220, 20, 20), "green.mkv": (20, 220, 20), "blue.avi": (20, 20, 220)}
    for name, colour in colours.items():
        write_video(folder / name, coloured_frames(colour), codec="mpeg4" if name.endswith("avi") else "libx264")
    return {name.split(".")[0]: folder / name for name in colours}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models colours/1 and colours/2 (8 frames of 24 x 32) and tags/1 (multi-label, 4 of 16 x 16)."""
    folder = tmp_path_factory.mktemp("models")
    for about in (
        onnx_models.manifest(),
        onnx_models.manifest(version="2", temperature=2.0),
        onnx_models.manifest(name="tags", task="multi_label", num_frames=4, height=16, width=16),
    ):
        onnx_models.save(folder, onnx_models.colours(about), about)
    return folder


@dataclass
class Service:
    """A service on a real socket, in a thread of this process."""

    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def classifier(self) -> Classifier:
        classifier: Classifier = self.app.state.classifier
        return classifier

    @property
    def address(self) -> tuple[str, int]:
        parsed = httpx.URL(self.url)
        return parsed.host, parsed.port or 0

    def post(self, path: Path | None = None, **arguments: Any) -> httpx.Response:
        if path is not None:
            arguments["files"] = {"file": (path.name, path.read_bytes())}
        return httpx.post(f"{self.url}/classify", timeout=PATIENCE_S, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S, **arguments)


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Service]:
    """Run the app until the end of the block, as `python -m service` would."""
    app = create_app(settings)
    started: list[Service] = []
    failed: list[BaseException] = []
    server: list[uvicorn.Server] = []

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(
                app, port=0, lifespan="off", log_config=None, access_log=False, **protocol_options(settings)
            )
            server.append(uvicorn.Server(config))
            task = asyncio.create_task(server[0].serve())
            await eventually(lambda: server[0].started)
            port = server[0].servers[0].sockets[0].getsockname()[1]
            started.append(Service(f"http://127.0.0.1:{port}", app, asyncio.get_running_loop()))
            await task

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: bool(started or failed), "the service is up")
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        if server:
            server[0].should_exit = True
        thread.join(PATIENCE_S)
    if failed:
        raise failed[0]
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def settings(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        models=models,
        default_model="colours/1",
        provider="cpu",
        decode_workers=2,
        max_upload_bytes=2_000_000,
        spool_dir=tmp_path_factory.mktemp("spool"),
    )


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[Service]:
    """The service that tests of a module share: they leave it as it was."""
    with running(settings) as running_service:
        yield running_service
    assert settings.spool_dir is not None
    assert list(settings.spool_dir.iterdir()) == [], "spool files were left behind"

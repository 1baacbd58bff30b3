"""`python -m service`: listen, say so when ready, and leave nobody without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import shlex
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from service.app import create_app
from service.engine.classifier import Classifier
from service.engine.repository import BUNDLED
from service.errors import StartError
from service.logs import structured
from service.protocol import BoundedProtocol, BoundedWebSocket
from service.settings import Settings
from service.spans import from_environment

log = logging.getLogger(__name__)

BACKLOG = 1024
KEEP_ALIVE_S = 75
"""How long a connection stays open between two requests: longer than proxies keep theirs, and than Retry-After has a
client wait, so that it is not this side that closes just when a request comes."""
UNREAD_S = 60
"""Who takes nothing of what was sent for so long is disconnected, by the kernel."""
SHUTDOWN_GRACE_S = 3
"""Past the deadline of a clip by this much a shutdown waits for clients to take their answers."""


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted.

    Raises:
        StartError: the port, a model or a provider cannot be had.
    """
    # uvicorn complains of every WebSocket that is refused by an HTTP answer, though it has sent that.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "completing handshake" not in record.getMessage())
    allow_open_files()
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings, from_environment())
        # The lifespan is entered here and not by uvicorn, so that a StartError arrives as it is.
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
                **protocol_options(settings),
            )
            await _Server(config, app.state.classifier, listener).serve(sockets=[listener])
    log.info("stopped")


def protocol_options(settings: Settings) -> dict[str, Any]:
    """Of uvicorn. No pings: a stream that is not read from, since it sends too fast, could not answer them in time,
    and idle ones are ended anyway. No compression: video has had it."""
    return {
        "http": BoundedProtocol,
        "ws": BoundedWebSocket,
        "ws_max_size": settings.max_message_bytes,
        "ws_ping_interval": None,
        "ws_per_message_deflate": False,
    }


class _Server(uvicorn.Server):
    """uvicorn, but for two things: it says how to use it, and a signal drains before it closes the door."""

    def __init__(self, config: uvicorn.Config, classifier: Classifier, listener: socket.socket) -> None:
        super().__init__(config)
        self._classifier = classifier
        self._listener = listener
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        greeting = _greeting(self._classifier, self._listener)
        if structured():
            log.info(greeting)
        else:
            print(greeting, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        yield

    def _stop(self, number: signal.Signals) -> None:
        if self._draining is not None:
            if number == signal.SIGINT:
                log.info("%s again: not waiting any longer", number.name)
                self.should_exit = self.force_exit = True
            return
        log.info("%s: taking no more, answering what was accepted", number.name)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for task in self.server_state.tasks:  # those that were not to be waited for
            task.cancel()

    async def _drain(self) -> None:
        # /readyz turns first, on a door that is still open; it closes when the last accepted clip has its answer.
        # Every clip here has been uploaded, so its deadline comes no later than this one.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._classifier.settings.deadline_s):
                await self._classifier.drain()
        self.should_exit = True


def allow_open_files() -> None:
    """As many as this process may have: every connection is one, and shells give 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # of systems whose bound is another than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Raises:
        StartError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it. Without it the kernel holds the end of an answer back for 40 ms; asyncio turns it on
        # by itself only for sockets that it made.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use; choose another with --port, or 0 for any that is free"
            ) from error
        raise StartError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def _greeting(classifier: Classifier, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    repository = classifier.repository
    default, bundled = repository.default, repository.bundled
    names = ", ".join(
        f"{model.name}/{model.version}" + (" (default)" if model is default and len(repository.models) > 1 else "")
        for model in repository.models
    )
    session = default.session
    why = f" (not CUDA: {session.provider_reason})" if session.provider_reason else ""
    samples = sorted((BUNDLED / "samples").glob("*.mp4"))
    sample = shlex.quote(str(samples[0])) if samples else "clip.mp4"
    # The sample belongs to the bundled model, whichever answers by default.
    ask = f"{url}/classify"
    if samples and bundled not in (None, default):
        ask = f"'{ask}?model={bundled.name}'"
    return f"ttvideo serves {names} on {url}\nprovider: {session.provider}{why}\ntry: curl -F file=@{sample} {ask}"

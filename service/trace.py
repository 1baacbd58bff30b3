"""What a request is about and where its time goes, noted while it is answered: for the log, the metrics and the traces.

Whoever answers notes it by `stage` and `note_model`, and does not know who looks. Outside of a request nobody does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Stage:
    """A part of a request's way: upload, queue, decode or infer."""

    name: str
    began_s: float
    """By `time.monotonic`."""
    seconds: float = 0.0
    failure: BaseException | None = None


class ModelUsed(NamedTuple):
    name: str
    version: str
    provider: str


@dataclass
class Trace:
    """One request, or one WebSocket from its opening to its end.

    Args:
        observe: called with every stage when it ends.
    """

    request_id: str
    observe: Callable[[Stage], object] = lambda stage: None
    key: str | None = None
    """The name of the API key that it came with."""
    model: ModelUsed | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; of several files in one request the sum."""
    ids: dict[str, str] = field(default_factory=dict)
    """trace_id and span_id, where there is an OpenTelemetry span."""


_current: ContextVar[Trace | None] = ContextVar("ttvideo_trace", default=None)


def current() -> Trace | None:
    """The request that this line of code works for."""
    return _current.get()


@contextmanager
def following(trace: Trace) -> Iterator[Trace]:
    """What is done inside the block, in tasks too, is noted for this request."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """A block that is a stage. Its `seconds` are known at the end, whether it failed or not."""
    this = Stage(name, time.monotonic())
    try:
        yield this
    except BaseException as failure:
        this.failure = failure
        raise
    finally:
        this.seconds = time.monotonic() - this.began_s
        if trace := _current.get():
            trace.seconds[name] = trace.seconds.get(name, 0.0) + this.seconds
            trace.observe(this)


def note_model(name: str, version: str, provider: str) -> None:
    """The model that answers the request."""
    if trace := _current.get():
        trace.model = ModelUsed(name, version, provider)

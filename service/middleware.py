"""Around every request: its id, its line in the log, its place in metrics and traces, and a clean end in any case."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.routes.problem import cut_short, unforeseen
from service.spans import RequestSpan, Spans
from service.trace import Stage, Trace, following

log = logging.getLogger("service.access")

_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SWITCHING_PROTOCOLS, _BAD_REQUEST, _FORBIDDEN = 101, 400, 403
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011


class Observe:
    """Plain ASGI: bodies stream through it untouched."""

    def __init__(self, app: ASGIApp, metrics: Metrics, spans: Spans | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        trace = Trace(given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex)
        method = scope.get("method", "WEBSOCKET")
        span = self.spans.begin(method, headers, trace) if self.spans else None
        if scope["type"] == "http":  # a live stream has a stage for each of its pictures
            trace.observe = lambda stage: self._stage(stage, span)
        state = scope.setdefault("state", {})
        state["request_id"] = trace.request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                case "websocket.accept":
                    status = _SWITCHING_PROTOCOLS
                case "websocket.close" if not status:
                    status = _FORBIDDEN  # it was never opened, and this is what the server makes of that
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)["X-Request-ID"] = trace.request_id
            await send(message)

        with following(trace):
            try:
                await self.app(scope, receive, send_with_id)
            except asyncio.CancelledError:
                # Only a shutdown that waits no longer does this. It ends here: the server would log a traceback.
                if scope["type"] == "websocket":
                    state["code"] = "cut_short"
                    await _close(send_with_id, _GOING_AWAY)
                elif not status:
                    await cut_short(Request(scope))(scope, receive, send_with_id)
            except Exception:
                log.exception("unforeseen")
                state["code"] = "internal_error"
                if scope["type"] == "websocket":
                    await _close(send_with_id, _INTERNAL_ERROR)
                elif status:
                    raise
                else:
                    await unforeseen(Request(scope))(scope, receive, send_with_id)
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                code = state.get("code", "ok" if status < _BAD_REQUEST else "refused")
                seconds = time.monotonic() - started
                self.metrics.requests.labels(route, str(status), code).inc()
                if trace.key:
                    self.metrics.key_requests.labels(trace.key, code).inc()
                if scope["type"] == "http":
                    self.metrics.request_seconds.labels(route).observe(seconds)
                if span:
                    span.end(method, route, status, code, trace)
                _write_line(method, route, status, code, 1e3 * seconds, trace)

    def _stage(self, stage: Stage, span: RequestSpan | None) -> None:
        self.metrics.stage_seconds.labels(stage.name).observe(stage.seconds)
        if span:
            span.stage(stage)


async def _close(send: Send, code: int) -> None:
    """Close a WebSocket that may be closed already."""
    with contextlib.suppress(Exception):
        await send({"type": "websocket.close", "code": code})


def _write_line(method: str, route: str, status: int, code: str, ms: float, trace: Trace) -> None:
    """The one line of a request. The path, file names and keys are the client's, and stay out of it."""
    if not log.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {"method": method, "route": route, "status": status, "code": code, "ms": round(ms, 1)}
    more: dict[str, Any] = {}
    if trace.key:
        more["key"] = trace.key
    if trace.model:
        more["model"] = f"{trace.model.name}/{trace.model.version}"
        more["provider"] = trace.model.provider
    stages = {name: round(1e3 * seconds, 1) for name, seconds in trace.seconds.items()}
    said = "".join(f" {name}={value}" for name, value in (more | stages).items())
    log.info(
        "%s %s %d %s %.1f ms%s",
        *(method, route, status, code, ms, said),
        extra={"fields": fields | more | ({"stages_ms": stages} if stages else {})},
    )

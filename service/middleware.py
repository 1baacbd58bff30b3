"""Around every request: its id, its line in the log, its place in the metrics, and a clean end in any case."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.routes.problem import cut_short, unforeseen

log = logging.getLogger("service.access")

_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Observe:
    """Plain ASGI: bodies stream through it untouched."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only a shutdown that waits no longer does this. It ends here: the server would log a traceback.
            if not status:
                await cut_short(Request(scope))(scope, receive, send_with_id)
        except Exception:
            log.exception("%s: unforeseen", request_id)
            if status:
                raise
            request = Request(scope)
            await unforeseen(request)(scope, receive, send_with_id)
        finally:
            spent = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            code = state.get("code", "ok")
            self.metrics.requests.labels(route, str(status), code).inc()
            self.metrics.request_seconds.labels(route).observe(spent)
            log.info("%s %s %s %d %s %.1f ms", request_id, scope["method"], route, status, code, 1e3 * spent)

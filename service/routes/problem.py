"""Errors as RFC 9457 problem+json, or under /v2 as its protocol has them: how they are answered and described."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.errors import MethodNotAllowed, NotFound, NotReady, RequestError, Unauthorized
from service.schemas import InferenceError, Problem

MEDIA_TYPE = "application/problem+json"
CLIENT_GONE = 499
"""What the metrics count where the client hung up before its answer."""

KEEP_BYTES = 8 * 1024 * 1024
"""An unwanted body up to this size is taken and thrown away, so that the connection can go on."""
LINGER_S = 2.0
"""How long the client of a larger one may go on sending before the connection is closed."""

_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}}
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "How a key is given.", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The methods that the path takes.", "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_OF_THE_ROUTER: dict[int, type[RequestError]] = {kind.status: kind for kind in (NotFound, MethodNotAllowed)}


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem, but for unforeseen ones: those are the middleware's."""

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        kind = _OF_THE_ROUTER.get(error.status_code, RequestError)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        if kind is MethodNotAllowed:
            headers["Allow"] = ", ".join(_methods(request))
        return problem(request, error.status_code, kind.code, kind.title, detail, headers)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        request.state.code = "client_gone"
        return Response(status_code=CLIENT_GONE)


def answer(request: HTTPConnection, error: RequestError) -> Response:
    """What is said of an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="ttvideo"'
    return problem(request, error.status, error.code, error.title, error.detail, headers)


def _methods(request: Request) -> list[str]:
    """Every method that the path takes; the router itself says only those of the first route that it finds there."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def problem(
    request: HTTPConnection, status: int, code: str, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.code = code
    kind = _Refusal if _expects_more(request) else Response
    if is_v2(request.url.path):
        return kind(InferenceError(error=detail).model_dump_json(), status, headers, "application/json")
    body = described(status, code, title, detail, getattr(request.state, "request_id", ""))
    return kind(body.model_dump_json(), status, headers, MEDIA_TYPE)


def described(status: int, code: str, title: str, detail: str, request_id: str) -> Problem:
    """A problem's body."""
    return Problem(
        type=f"urn:ttvideo:error:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        instance=f"urn:ttvideo:request:{request_id}",
        request_id=request_id,
    )


def is_v2(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, whose errors have a form of their own."""
    return path == "/v2" or path.startswith("/v2/")


def _expects_more(request: HTTPConnection) -> bool:
    """Whether a large body, or one of unknown size, is still on its way, or one that nobody waits for any longer."""
    if getattr(request.state, "body_read", False):
        return False
    if getattr(request.state, "body_given_up", False):
        return True
    declared = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or not declared.isdigit() or int(declared) > KEEP_BYTES


class _Refusal(Response):
    """An answer to somebody who is still sending.

    Closing at once would reset the connection, and many clients would never read why. So the answer goes out first,
    then what comes in is thrown away for a moment, then the connection is closed.
    """

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers({**(headers or {}), "Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while (await receive()).get("more_body", False):
                        pass
        finally:
            await send({"type": "http.response.body", "body": b""})


def cut_short(request: Request) -> Response:
    """The answer where a shutdown waits no longer."""
    return problem(request, NotReady.status, NotReady.code, NotReady.title, "the service shut down before the answer")


def unforeseen(request: Request) -> Response:
    """A 500 that says nothing of its cause; the log does."""
    detail = "an unforeseen error; the service's log tells more under this request's id"
    return problem(request, 500, RequestError.code, RequestError.title, detail)


def problems(*errors: type[RequestError]) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: the errors that it may answer, by status. Their examples are added by `openapi`."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        response = responses.setdefault(error.status, {"description": "", "content": {MEDIA_TYPE: content}})
        response["description"] = f"{response['description']} `{error.code}`: {error.title}.".lstrip()
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"summary": error.title}
        if error.status in _HEADERS:
            response["headers"] = _HEADERS[error.status]
    return responses

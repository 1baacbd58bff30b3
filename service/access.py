"""Who may ask, from where, and how often: keys, rate limits and origins, before anything of a request is read."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForeignOrigin, RateLimited, RequestError, Unauthorized
from service.keys import Keys
from service.routes.health import PROBES
from service.routes.problem import answer
from service.trace import current

DESCRIPTION = {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
"""Open to everybody: they say how to use a key, and nothing of what is served."""
MAX_CALLERS = 10_000
"""Callers whose rate is remembered; past it the one that was away longest is forgotten."""
KEY_SUBPROTOCOL = "ttvideo.key."
"""Before a key among the subprotocols: a page can give its WebSocket no header."""
_POLICY_VIOLATION = 1008
_HARMLESS = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing, and whose answers a browser keeps from pages of other web sites by itself."""


class RateLimit:
    """A token bucket for every caller, each kept as the one moment at which it will be full again.

    Args:
        per_s: tokens that come back in a second.
        burst: tokens in a full bucket.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._token_s = 1 / per_s
        self._room_s = burst / per_s
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take a token: 0. Where there is none: the seconds until there will be one."""
        now = self._clock()
        full_at = max(self._full_at.get(caller, now), now)
        wait_s = full_at + self._token_s - now - self._room_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at[caller] = full_at + self._token_s
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_CALLERS:
            self._full_at.popitem(last=False)
        return 0.0


class Access:
    """Plain ASGI: refuses requests and WebSockets before their body or their first message is read.

    Callers are told apart by the name of their key, and by their address where they bring none that is known.

    Args:
        open_metrics: whether /metrics needs no key.
    """

    def __init__(self, app: ASGIApp, keys: Keys, rate: RateLimit | None, open_metrics: bool = False) -> None:
        self.app = app
        self.keys = keys
        self.rate = rate
        self.open = DESCRIPTION | ({"/metrics"} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        try:
            self._admit(scope)
        except RequestError as error:
            await _refuse(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        refusal = None
        caller = f"address {_address(scope)}"
        if self.keys:
            try:
                name = self._name(scope)
                if trace := current():
                    trace.key = name
                caller = f"key {name}"
            except Unauthorized as error:
                if scope["path"] not in self.open:
                    refusal = error
        # Whoever tries keys spends tokens too.
        if self.rate and (wait_s := self.rate.take(caller)):
            raise RateLimited(
                f"too many requests of {caller}; the next is answered in {wait_s:.3g} s", retry_after_s=wait_s
            )
        if refusal:
            raise refusal

    def _name(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        for offered in scope.get("subprotocols", ()):
            if not key and offered.startswith(KEY_SUBPROTOCOL):
                key = offered.removeprefix(KEY_SUBPROTOCOL)
        if not key:
            raise Unauthorized("expected an API key, as Authorization: Bearer KEY or as X-API-Key: KEY, got none")
        name = self.keys.name_of(key)
        if name is None:
            raise Unauthorized("expected an API key that is known here, got another")
        return name


class Origins:
    """Plain ASGI: refuses WebSockets and uploads of pages of another web site. Browsers send them without a preflight:
    they say whose the page is, and leave the rest to the server. Whoever is no browser says nothing.

    Args:
        others: web sites whose pages may, beside the service's own; `*` for all.
    """

    def __init__(self, app: ASGIApp, others: Collection[str]) -> None:
        self.app = app
        self.others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in _HARMLESS):
            headers = Headers(scope=scope)
            origin, host = headers.get("origin"), headers.get("host")
            if origin is not None and not ({origin, "*"} & set(self.others) or origin.partition("://")[2] == host):
                error = ForeignOrigin(f"expected a page of {host} or of an origin that is allowed, got {origin}")
                await _refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


def _address(scope: Scope) -> str:
    """The client's, of IPv6 the network of 64 bits that one client has for itself."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return str(host)
    if address.version == 6 and (inner := address.ipv4_mapped) is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(inner if address.version == 6 else address)


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the opening
        if "websocket.http.response" not in scope.get("extensions", {}):
            scope["state"]["code"] = error.code
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": error.title})
            return
    await answer(HTTPConnection(scope), error)(scope, receive, send)


def rate_limit(per_s: float | None, burst: int | None) -> RateLimit | None:
    """The settings' limit: a burst of one second's requests where none is named."""
    return None if per_s is None else RateLimit(per_s, burst or max(1, math.ceil(per_s)))

"""Who may ask, and how often, as clients see it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from service import access
from service.access import Access, RateLimit
from service.keys import Keys
from service.routes.health import PROBES
from service.settings import Settings
from tests.service.conftest import PATIENCE_S, Service, running, wait_until
from tests.service.routes.test_problem import check_problem

ALICE, BOB = "alices-secret-key-0001", "bobs-secret-key-000002"
ORIGIN = "https://example.org"
BEARER = {"Authorization": f"Bearer {ALICE}"}


@pytest.fixture(scope="module")
def locked(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys, and with pages of one origin."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    with running(settings.model_copy(update={"api_keys_file": file, "cors_origins": (ORIGIN,)})) as service:
        yield service


def ws(service: Service) -> str:
    return service.url.replace("http://", "ws://")


def test_a_key_opens_in_either_header(locked: Service, clips: dict[str, Path]) -> None:
    for headers in (
        BEARER,
        {"X-API-Key": BOB},
        {"authorization": f"bearer  {BOB}"},
        {"Authorization": "Basic eDp5", "X-API-Key": ALICE},
    ):
        assert locked.get("/model", headers=headers).status_code == 200
    assert locked.post(clips["red"], headers=BEARER).json()["label"] == "red"


def test_without_a_known_key_it_is_401(locked: Service) -> None:
    for headers in ({}, {"X-API-Key": "guess"}, {"Authorization": "Bearer guess"}, {"Authorization": f"Basic {ALICE}"}):
        response = locked.get("/model", headers=headers)
        problem = check_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == 'Bearer realm="ttvideo"'
        assert "guess" not in problem["detail"]
    assert locked.get("/metrics").status_code == 401
    assert locked.get("/nowhere").status_code == 401, "what there is, is not told either"


def test_under_v2_the_refusal_has_its_form(locked: Service) -> None:
    response = locked.get("/v2/models/colours")
    assert response.status_code == 401
    assert list(response.json()) == ["error"]


def test_probes_and_the_description_stay_open(locked: Service) -> None:
    for path in (*PROBES, "/docs", "/openapi.json"):
        assert locked.get(path).status_code == 200
    schema = locked.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    assert "401" in schema["paths"]["/classify"]["post"]["responses"]
    assert "401" not in schema["paths"]["/livez"]["get"]["responses"]


def test_metrics_are_open_by_choice(settings: Settings) -> None:
    chosen = settings.model_copy(update={"api_keys": type(settings.api_keys)(f"alice:{ALICE}"), "open_metrics": True})
    with running(chosen) as service:
        assert service.get("/metrics").status_code == 200
        assert service.get("/model").status_code == 401


def test_the_metrics_know_the_name(locked: Service) -> None:
    locked.get("/model", headers={"X-API-Key": BOB}, params={"model": "none"})
    text = locked.get("/metrics", headers=BEARER).text
    assert 'ttvideo_key_requests_total{code="unknown_model",key="bob"} 1.0' in text
    assert ALICE not in text


def test_a_large_upload_is_refused_before_it_is_read(locked: Service) -> None:
    """And the client reads why, though it never stops sending."""
    with socket.create_connection(locked.address, timeout=10) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + bytes(100_000))
        assert client.recv(12) == b"HTTP/1.1 401"


def test_a_page_of_the_origin_may_ask_and_its_preflight_needs_no_key(locked: Service) -> None:
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    response = httpx.options(f"{locked.url}/classify", headers=asking)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    refused = locked.get("/model", headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN, "the page may read why"
    other = httpx.options(f"{locked.url}/classify", headers=asking | {"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in other.headers
    counted = locked.get("/metrics", headers=BEARER).text
    assert 'ttvideo_requests_total{code="refused",route="unmatched",status="400"} 1.0' in counted


def test_no_other_page_may_ask_by_default(service: Service) -> None:
    response = service.get("/model", headers={"Origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_pages_of_other_web_sites_upload_nothing(locked: Service, service: Service, clips: dict[str, Path]) -> None:
    """Browsers send a multipart form without asking first."""
    for foreign in ("https://example.com", "null", f"{service.url}0"):
        check_problem(service.post(clips["red"], headers={"Origin": foreign}), 403, "foreign_origin")
    assert service.post(clips["red"], headers={"Origin": service.url}).status_code == 200
    assert locked.post(clips["red"], headers=BEARER | {"Origin": ORIGIN}).status_code == 200


def test_a_page_gives_a_websocket_its_key_as_a_subprotocol(locked: Service) -> None:
    offered = [Subprotocol("ttvideo"), Subprotocol(f"ttvideo.key.{ALICE}")]
    with connect(f"{ws(locked)}/stream", origin=Origin(ORIGIN), subprotocols=offered) as page:
        assert page.subprotocol == "ttvideo"
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"{ws(locked)}/stream", subprotocols=[offered[0], Subprotocol("ttvideo.key.guess")]),
    ):
        pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("origins", ["example.org", "https://example.org/path", "https://a.org b.org"])
def test_an_origin_is_scheme_and_host(origins: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=origins)  # type: ignore[arg-type]


def test_origins_are_separated_by_spaces_or_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTVIDEO_CORS_ORIGINS", "https://a.org, http://localhost:3000")
    assert Settings().cors_origins == ("https://a.org", "http://localhost:3000")


def test_one_caller_too_fast_is_429_and_others_go_on(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    limits = {"api_keys_file": file, "rate_limit": 0.01, "rate_burst": 2}
    with running(settings.model_copy(update=limits)) as service:
        answers = [service.get("/model", headers=BEARER) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        problem = check_problem(answers[2], 429, "rate_limited")
        assert "key alice" in problem["detail"]
        assert 90 < int(answers[2].headers["retry-after"]) <= 100
        assert service.get("/v2", headers=BEARER).json().keys() == {"error"}
        assert service.get("/model", headers={"X-API-Key": BOB}).status_code == 200
        assert [service.get("/model", headers={"X-API-Key": "guess"}).status_code for _ in range(3)] == [401, 401, 429]
        assert [service.get("/readyz").status_code for _ in range(4)] == [200] * 4
        assert (
            "429"
            in service.get("/openapi.json", headers={"X-API-Key": BOB}).json()["paths"]["/model"]["get"]["responses"]
        )


class TestRateLimit:
    """Against a bucket that is filled step by step."""

    def test_it_lets_through_what_a_bucket_would(self) -> None:
        now = 0.0
        limit = RateLimit(4, 3, lambda: now)
        tokens, refused = 3.0, 0
        for _ in range(400):
            now += 0.125 * (_ % 3)
            tokens = min(3.0, tokens + 0.125 * (_ % 3) * 4)
            wait_s = limit.take("a")
            assert (wait_s == 0) == (tokens >= 1)
            if wait_s:
                assert wait_s == pytest.approx((1 - tokens) / 4)
                refused += 1
            else:
                tokens -= 1
        assert 0 < refused < 400

    def test_callers_have_buckets_of_their_own(self) -> None:
        limit = RateLimit(1, 1, lambda: 0.0)
        assert [limit.take(caller) for caller in "aab"] == [0, 1, 0]

    def test_its_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access, "MAX_CALLERS", 10)
        limit = RateLimit(1, 1, lambda: 0.0)
        for number in range(100):
            limit.take(str(number))
        assert limit.take("99") == 1, "the last ones are remembered"
        assert len(limit._full_at) == 10


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a-unix-socket", "a-unix-socket"),
    ],
)
def test_an_address_stands_for_one_client(host: str, caller: str) -> None:
    assert access._address({"client": (host, 1)}) == caller


@pytest.mark.anyio
@pytest.mark.parametrize("extensions", [{"websocket.http.response": {}}, {}])
async def test_a_websocket_is_refused_properly(extensions: dict[str, Any], anyio_backend: str) -> None:
    async def never(*_: Any) -> None:
        pytest.fail("it was let in")

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(dict(message))

    headers = [(b"host", b"x")]
    scope = {
        "type": "websocket",
        "path": "/stream",
        "headers": headers,
        "extensions": extensions,
        "state": {},
        "scheme": "ws",
        "server": ("x", 80),
        "query_string": b"",
    }
    await Access(never, Keys(f"alice:{ALICE}"), None)(scope, receive, send)
    if extensions:
        assert sent[0]["type"] == "websocket.http.response.start"
        assert sent[0]["status"] == 401
        assert b"www-authenticate" in dict(sent[0]["headers"])
        assert b"unauthorized" in sent[1]["body"]
    else:
        assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]
    assert scope["state"]["code"] == "unauthorized"  # type: ignore[index]


def test_a_websocket_needs_a_key_too(locked: Service, caplog: pytest.LogCaptureFixture) -> None:
    url = locked.url.replace("http", "ws") + "/stream"
    with pytest.raises(InvalidStatus) as caught, connect(url):
        pytest.fail("it was let in")
    refusal = caught.value.response
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"] == 'Bearer realm="ttvideo"'
    assert json.loads(refusal.body or b"")["code"] == "unauthorized"
    with caplog.at_level("INFO", "service.access"), connect(url, additional_headers={"X-API-Key": BOB}) as opened:
        assert json.loads(opened.recv())["code"] == "not_for_pieces"
        wait_until(lambda: "WEBSOCKET /stream 101" in caplog.text, "its line is written")
    assert "key=bob" in caplog.text


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(None, True), (ORIGIN, True), ("own", True), ("https://example.com", False), ("null", False), ("http://[", False)],
)
def test_pages_of_other_web_sites_open_no_stream(locked: Service, origin: str | None, allowed: bool) -> None:
    """Browsers do not keep them from it, as they do from anything else."""
    if origin == "own":
        origin = locked.url
    url = locked.url.replace("http", "ws") + "/stream?model=moving_digits"
    if allowed:
        with connect(url, origin=origin, additional_headers=BEARER) as socket:
            assert json.loads(socket.recv())["type"] == "ready"
        return
    with pytest.raises(InvalidStatus) as refused:
        connect(url, origin=origin, additional_headers=BEARER)
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["code"] == "foreign_origin"
    assert locked.get("/model", headers={**BEARER, "Origin": origin or ""}).status_code == 200


def test_sequences_of_one_key_are_not_those_of_another(locked: Service) -> None:
    frames = {"name": "frames", "shape": [1, 1, 120, 160, 3], "datatype": "UINT8", "data": [0] * 57_600}

    def ask(key: str, **parameters: Any) -> int:
        head = {"inputs": [frames], "parameters": {"sequence_id": 1, **parameters}}
        url = f"{locked.url}/v2/models/moving_digits/infer"
        return httpx.post(url, json=head, headers={"X-API-Key": key}, timeout=PATIENCE_S).status_code

    assert ask(ALICE, sequence_start=True) == 200
    assert ask(BOB) == 404
    assert ask(BOB, sequence_start=True, sequence_end=True) == 200
    assert ask(ALICE, sequence_end=True) == 200

"""What no parser bounds by itself is bounded: heads, trailers, extensions of chunks, waits, and answers to pings."""

from __future__ import annotations

import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from websockets.sync.client import connect

from service import protocol
from service.protocol import MAX_HEAD_BYTES, BoundedWebSocket
from tests.service.conftest import PATIENCE_S, Service

START = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
CHUNKED = START + b"Content-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n"
OPENING = (
    b"GET /stream?model=moving_digits HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
READ_BYTES = 256 * 1024
"""Of a socket at once, by asyncio."""

ENDLESS: dict[str, Iterator[bytes]] = {
    "header": chain([START + b"X-A: "], repeat(b"a" * 1000)),
    "headers": chain([START], repeat(b"X-A: b\r\n" * 100)),
    "url": chain([b"GET /"], repeat(b"a" * 1000)),
    "trailer": chain([CHUNKED + b"3\r\nabc\r\n0\r\nX-A: "], repeat(b"a" * 1000)),
    "trailers": chain([CHUNKED + b"3\r\nabc\r\n0\r\n"], repeat(b"X-A: b\r\n" * 100)),
    "extension": chain([CHUNKED + b"3;"], repeat(b"a" * 1000)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_is_refused(service: Service, kind: str) -> None:
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(ConnectionError):
            _send(connection, ENDLESS[kind], at_most=MAX_HEAD_BYTES + 16 * READ_BYTES)
    assert service.get("/livez").status_code == 200


def test_a_long_head_is_read(service: Service) -> None:
    assert service.get("/livez", headers={"X-A": "a" * (MAX_HEAD_BYTES // 2)}).status_code == 200


def test_a_body_in_small_chunks_may_be_longer_than_a_head(service: Service) -> None:
    body = b"1\r\na\r\n" * MAX_HEAD_BYTES + b"0\r\n\r\n"
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(CHUNKED + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 415")


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"POST /classify HT", [b"408"]),
        (START, [b"408"]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez", [b"200", b"408"]),
    ],
    ids=["nothing", "an empty line", "half a line", "half a head", "half a second head"],
)
def test_who_does_not_end_a_head_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch, sent: bytes, statuses: list[bytes]
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.1)
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(sent)
        answer = _read_all(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == statuses


@pytest.mark.parametrize(
    ("headers", "status"),
    [(b"Content-Length: 9\r\n", b"400"), (b"A: b\r\n" * 200, b"431"), (b"A: " + b"b" * 20_000 + b"\r\n", b"431")],
    ids=["a body", "many headers", "a long header"],
)
def test_what_opens_no_web_socket_is_answered(service: Service, headers: bytes, status: bytes) -> None:
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(OPENING + headers + b"\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", _read_all(connection)) == [status]


def test_a_head_that_came_in_time_bounds_no_body(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(CHUNKED)
        time.sleep(0.2)
        connection.sendall(b"1\r\na\r\n0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 415")


def test_pings_of_who_does_not_read_leave_nothing_behind(service: Service) -> None:
    ping = struct.pack("!BB4x", 0x89, 0x80 | 125) + bytes(125)
    before = _resident_bytes()
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(OPENING + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 101")
        for _ in range(30):
            connection.sendall(ping * 8_000)
        grown = _resident_bytes() - before
    assert grown < 15_000_000, "of 31 MB that were sent"


def test_few_requests_wait_on_one_connection(service: Service, clips: dict[str, Path]) -> None:
    """Each that waits is an object, and takes a hundred times the bytes that it came in."""
    video = clips["red"].read_bytes()
    first = START + b"Content-Length: %d\r\n\r\n" % len(video) + video
    next_one = b"GET /livez HTTP/1.1\r\n\r\n"
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(first + next_one * (protocol.MAX_PIPELINED + 1))
        assert re.findall(rb"HTTP/1.1 (\d+)", _read_all(connection)) == [b"400"]
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(first + next_one * 10 + next_one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert re.findall(rb"HTTP/1.1 (\d+)", _read_all(connection)) == [b"200"] * 12


def test_little_of_a_web_socket_is_read_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """All frames of one read are taken before anybody else has a turn."""
    sizes = []
    read = BoundedWebSocket.data_received

    def spy(self: BoundedWebSocket, data: bytes) -> None:
        sizes.append(len(data))
        read(self, data)

    monkeypatch.setattr(BoundedWebSocket, "data_received", spy)
    with connect(service.url.replace("http", "ws") + "/stream?model=moving_digits") as opened:
        opened.recv()
        opened.send(bytes(500_000))
        assert '"error"' in str(opened.recv())
    assert sum(sizes) > 500_000
    assert max(sizes) <= protocol.READ_BYTES


def _read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(10_000), b""))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _send(connection: socket.socket, pieces: Iterator[bytes], at_most: int) -> None:
    """Until the other side hangs up; `at_most` includes what the sockets hold."""
    sent = 0
    while sent < at_most:
        piece = next(pieces)
        connection.sendall(piece)
        sent += len(piece)

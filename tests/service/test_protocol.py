"""What no parser bounds by itself is bounded: heads, trailers, extensions of chunks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from service.protocol import MAX_HEAD_BYTES
from tests.service.conftest import PATIENCE_S, Service

START = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
CHUNKED = START + b"Content-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n"
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


def _send(connection: socket.socket, pieces: Iterator[bytes], at_most: int) -> None:
    """Until the other side hangs up; `at_most` includes what the sockets hold."""
    sent = 0
    while sent < at_most:
        piece = next(pieces)
        connection.sendall(piece)
        sent += len(piece)

"""Clients that ask again as soon as they have their answer, at next to no cost to the machine that they share."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable

BOUNDARY = b"ttvideo-benchmark"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LABEL = re.compile(rb'"label": ?"(\w+)"')


def upload_request(video: bytes) -> bytes:
    """POST /classify with the video as multipart field `file`, head and body."""
    body = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n'
        b"Content-Type: video/mp4\r\n\r\n%b\r\n--%b--\r\n" % (BOUNDARY, video, BOUNDARY)
    )
    return (
        b"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        b"Content-Type: multipart/form-data; boundary=%b\r\nContent-Length: %d\r\n\r\n%b" % (BOUNDARY, len(body), body)
    )


class Crowd:
    """So many clients, each on a connection of its own that stays open.

    A client that is told Retry-After waits so long. An answer counts under its status, and under "wrong" where it is
    200 with another label; a connection that ends before its answer under "closed".

    Args:
        request: all bytes of it.
        label: of a right answer.
    """

    def __init__(self, port: int, request: bytes, label: str, num_clients: int) -> None:
        self.port, self.request, self.label = port, request, label.encode()
        self.num_clients = num_clients
        self.asking = True
        self.under_way = 0
        self.idle = asyncio.Event()
        self.connecting: set[asyncio.Task[None]] = set()
        self.connected: set[asyncio.Transport] = set()
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self.codes: Counter[str] = Counter()
        self.latencies_s: list[float] = []

    async def start(self) -> None:
        await asyncio.gather(*(self.connect() for _ in range(self.num_clients)))

    async def connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Client(self), "127.0.0.1", self.port)
        except OSError:
            self.count("refused")
            self.later(0.1, self.connect_again)

    def connect_again(self) -> None:
        task = asyncio.ensure_future(self.connect())
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        if self.asking:
            asyncio.get_running_loop().call_later(delay_s, call)

    def count(self, code: str, latency_s: float | None = None) -> None:
        self.codes[code] += 1
        if latency_s is not None:
            self.latencies_s.append(latency_s)

    async def end(self, timeout_s: float = 90) -> int:
        """Ask no more, wait for the answers still to come, hang up, and say how many did not come."""
        self.asking = False
        try:
            async with asyncio.timeout(timeout_s):
                while self.under_way:
                    self.idle.clear()
                    await self.idle.wait()
        except TimeoutError:
            pass
        missing = self.under_way
        for transport in self.connected:
            transport.abort()
        await asyncio.gather(*self.connecting, return_exceptions=True)
        await asyncio.sleep(0)  # in which they end
        return missing


class _Client(asyncio.Protocol):
    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.crowd.connected.add(transport)
        self.ask()

    def ask(self) -> None:
        if not self.crowd.asking or self.transport.is_closing():
            self.transport.close()
            return
        self.waiting, self.answer, self.sent = True, b"", time.perf_counter()
        self.crowd.under_way += 1
        self.transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head_end = self.answer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.answer[: head_end + 2]
        if length := _LENGTH.search(head):
            whole = len(self.answer) >= head_end + 4 + int(length[1])
        else:
            whole = bool(_CHUNKED.search(head)) and self.answer.endswith(b"0\r\n\r\n")
        if whole:
            self.answered(head)

    def answered(self, head: bytes) -> None:
        self.settle()
        status = head[9:12].decode()
        if status == "200":
            label = _LABEL.search(self.answer)
            right = label is not None and label[1] == self.crowd.label
            self.crowd.count("200" if right else "wrong", time.perf_counter() - self.sent)
        else:
            self.crowd.count(status)
        wait = _RETRY_AFTER.search(head)
        if wait:
            self.crowd.later(float(wait[1]), self.ask)
        else:
            self.ask()

    def settle(self) -> None:
        self.waiting = False
        self.crowd.under_way -= 1
        self.crowd.idle.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd.connected.discard(self.transport)
        if self.waiting:
            self.settle()
            self.crowd.count("closed")
        self.crowd.later(0, self.crowd.connect_again)

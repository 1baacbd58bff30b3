"""HTTP and WebSockets as the server reads them: by llhttp and websockets, with bounds where these have none."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's head, and of whatever else brings nothing of a body: trailers, extensions of chunks."""
HEAD_TIMEOUT_S = 20.0
"""From a connection's beginning, or from the first byte of a further request, to the end of the head."""


MAX_PIPELINED = 32
"""Requests that may wait for the answer to one before them on their connection."""
READ_BYTES = 8 * 1024
"""Of a WebSocket at once: as many tiny frames as that may hold are read in one go, while everybody else waits."""

_NO_OPENING = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Bytes that bring neither a request nor a piece of its body are kept by the parser, so they are counted. What one
    read of the socket brings, 256 KiB at most, may come on top.
    """

    _progress = False
    _num_idle_bytes = 0
    _in_head = False
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._num_idle_bytes = 0 if self._progress else self._num_idle_bytes + len(data)
        if self._num_idle_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"Expected a head of at most {MAX_HEAD_BYTES} bytes.")
        elif self._between_requests and self.timeout_keep_alive_task is None:
            # What came was the rest of a body that nobody wanted, or an empty line: no reason to wait for ever.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def _between_requests(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and not self._in_head

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait")  # httptools makes a parser's error of it
        super().on_message_begin()
        self._in_head = True
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def on_headers_complete(self) -> None:
        self._progress = True
        self._in_head = False
        self._wait_no_longer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _head_too_slow(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self._in_head:
            said = f"Expected the head of a request within {HEAD_TIMEOUT_S:g} s."
            head = "content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
            self.transport.write(STATUS_LINE[408] + f"{head}content-length: {len(said)}\r\n\r\n{said}".encode("ascii"))
        self.transport.close()


class BoundedWebSocket(WebSocketsSansIOProtocol, asyncio.BufferedProtocol):
    """Reads little at once, answers no pings of a client that does not read, since the answers would pile up, and
    answers an opening that is none.
    """

    _read: bytearray

    def get_buffer(self, sizehint: int) -> bytearray:
        self._read = bytearray(READ_BYTES)
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self._read)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the first data is the whole head
            self.transport.write(b"".join(self.conn.data_to_send()) or _NO_OPENING)
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

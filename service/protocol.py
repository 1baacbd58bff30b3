"""HTTP as the server reads it: by llhttp, which is C, with a bound where that has none."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's head, and of whatever else brings nothing of a body: trailers, extensions of chunks."""


class BoundedProtocol(HttpToolsProtocol):
    """Bytes that bring neither a request nor a piece of its body are kept by the parser, so they are counted. What one
    read of the socket brings, 256 KiB at most, may come on top.
    """

    _progress = False
    _num_idle_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        self._num_idle_bytes = 0 if self._progress else self._num_idle_bytes + len(data)
        if self._num_idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"Expected a head of at most {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._progress = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()

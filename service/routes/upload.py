"""Receive a request's body into a spool file, piece by piece; never whole in memory."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.engine.admission import Admission
from service.errors import EmptyUpload, MalformedUpload, NoRoom, NotReady, StartError, UploadTimeout, UploadTooLarge
from service.trace import stage

FIELD = "file"
MAX_FORM_OVERHEAD_BYTES = 64 * 1024
"""What a multipart body may hold beside the file."""


@dataclass(frozen=True)
class Upload:
    """A received video. The client's file name and content type play no part."""

    path: Path
    num_bytes: int
    receive_s: float


def check_spool(spool_dir: Path | None) -> None:
    """Raise StartError where uploads could not be written."""
    try:
        with tempfile.TemporaryFile(dir=spool_dir):
            pass
    except OSError as error:
        where = spool_dir or tempfile.gettempdir()
        raise StartError(f"expected a folder for uploads that can be written at {where}: {error.strerror}") from error


@asynccontextmanager
async def receiving(request: Request, admission: Admission, timeout_s: float) -> AsyncIterator[Callable[[], None]]:
    """A block that reads the body, and calls what it gets with every piece. How far it came is left in `request.state`,
    for whoever answers.

    Raises:
        UploadTimeout, NotReady: from `admission`.
    """
    try:
        with stage("upload"):
            async with admission.upload(timeout_s) as came:
                yield came
    except (UploadTimeout, NotReady):
        request.state.body_given_up = True
        raise
    request.state.body_read = True


@asynccontextmanager
async def receive_upload(
    request: Request, admission: Admission, *, max_bytes: int, timeout_s: float, spool_dir: Path | None
) -> AsyncIterator[Upload]:
    """The multipart field `file`, or the whole body of any other content type; removed on leaving.

    Raises:
        EmptyUpload, MalformedUpload, UploadTooLarge.
        NoRoom: the spool's disk is full.
        UploadTimeout, NotReady: from `admission`.
    """
    started = time.monotonic()
    kind, options = parse_options_header(request.headers.get("content-type"))
    is_form = kind == b"multipart/form-data"
    limit = max_bytes + (MAX_FORM_OVERHEAD_BYTES if is_form else 0)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(max_bytes, f"a body of {int(declared)}")
    with _asking_for_room():
        # Without a buffer: what could not be written is not tried again when the file is closed.
        opened = tempfile.NamedTemporaryFile(prefix="ttvideo-", dir=spool_dir, buffering=0)  # noqa: SIM115
    with opened as spool:
        write: Callable[[bytes], object] = partial(_write, spool.file)
        form = _Form(options.get(b"boundary"), write) if is_form else None
        if form is not None:
            write = form.write
        received = 0
        async with receiving(request, admission, timeout_s) as came:
            async for piece in request.stream():
                came()
                received += len(piece)
                if received > limit:
                    raise _too_large(max_bytes, "more")
                with _asking_for_room():
                    write(piece)
                if is_form and spool.tell() > max_bytes:
                    raise _too_large(max_bytes, "more")
        if form is not None:
            form.finish()
        num_bytes = spool.tell()
        if not num_bytes:
            raise EmptyUpload(f"expected a video as multipart field {FIELD!r} or as the body, got 0 bytes")
        yield Upload(Path(spool.name), num_bytes, time.monotonic() - started)


@contextmanager
def _asking_for_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(f"expected room for the upload where uploads wait: {error.strerror}") from error


def _write(spool: IO[bytes], data: bytes) -> None:
    """All of it: a file without a buffer may take less at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[spool.write(rest) :]


def _too_large(max_bytes: int, got: str) -> UploadTooLarge:
    return UploadTooLarge(f"expected a video of at most {max_bytes} bytes, got {got}")


class _Form:
    """A multipart form on its way: the field `file` goes to `keep`, everything else is passed over."""

    def __init__(self, boundary: bytes | None, keep: Callable[[bytes], object]) -> None:
        if not boundary:
            raise MalformedUpload("expected a boundary in the multipart content type, got none")
        self._keep = keep
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._fields: list[str] = []
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedUpload(f"expected a multipart form: {error}") from error

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedUpload(f"expected a multipart form: {error}") from error

    def finish(self) -> None:
        if FIELD not in self._fields:
            found = ", ".join(map(repr, self._fields)) or "no field"
            raise EmptyUpload(f"expected a multipart field {FIELD!r}, got {found}")
        if not self._ended:
            raise MalformedUpload("expected a closing multipart boundary, the body ends before it")

    def _part_begin(self) -> None:
        self._headers, self._field = {}, None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == FIELD and FIELD in self._fields:
            raise MalformedUpload(f"expected one multipart field {FIELD!r}, got several")
        self._fields.append(self._field)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == FIELD:
            self._keep(data[start:end])

    def _end(self) -> None:
        self._ended = True

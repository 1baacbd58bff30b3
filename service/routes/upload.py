"""Receive a request's body into spool files, piece by piece; never whole in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.engine.admission import Admission
from service.errors import EmptyUpload, MalformedUpload, NotReady, TooManyFiles, UploadTimeout, UploadTooLarge
from service.spool import Spool, SpoolFile
from service.trace import stage

FIELD = "file"
MAX_FORM_OVERHEAD_BYTES = 64 * 1024
"""What a multipart body may hold beside its files."""
MAX_NAME_LENGTH = 200
"""Characters of a file name that are told back."""


@dataclass(frozen=True)
class Upload:
    """A received video. The client's content type plays no part, nor does its file name, but to tell it back."""

    file: SpoolFile
    name: str | None


@asynccontextmanager
async def receiving(request: Request, admission: Admission, timeout_s: float) -> AsyncIterator[Callable[[int], None]]:
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
async def receive_uploads(
    request: Request, admission: Admission, spool: Spool, *, max_bytes: int, max_files: int, timeout_s: float
) -> AsyncIterator[list[Upload]]:
    """Every multipart field `file`, or the whole body of any other content type; removed on leaving.

    The request has its place already; each further file takes one of its own.

    Args:
        max_bytes: of all files together.

    Raises:
        EmptyUpload, MalformedUpload, UploadTooLarge, TooManyFiles.
        NoRoom: the spool or its disk is full.
        Busy: there are not as many places as files.
        UploadTimeout, NotReady: from `admission`.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    is_form = kind == b"multipart/form-data"
    limit = max_bytes + (MAX_FORM_OVERHEAD_BYTES if is_form else 0)
    declared = request.headers.get("content-length", "")
    if declared.isdigit():
        if int(declared) > limit:
            raise _too_large(max_bytes, f"a body of {int(declared)}")
        spool.check_room(int(declared))
    uploads: list[Upload] = []
    with ExitStack() as stay:

        def begin(name: str | None = None) -> Upload:
            if len(uploads) == max_files:
                raise TooManyFiles(f"expected at most {max_files} multipart fields {FIELD!r}, got more")
            if uploads:
                stay.enter_context(admission.admit())
            uploads.append(Upload(stay.enter_context(spool.file()), name))
            return uploads[-1]

        form = _Form(options.get(b"boundary"), begin) if is_form else None
        write = begin().file.write if form is None else form.write
        received = 0
        async with receiving(request, admission, timeout_s) as came:
            async for piece in request.stream():
                came(len(piece))
                received += len(piece)
                if received > limit:
                    raise _too_large(max_bytes, "more")
                write(piece)
                num_bytes = sum(upload.file.num_bytes for upload in uploads)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes, "more")
                if form is not None and received - num_bytes > MAX_FORM_OVERHEAD_BYTES:
                    form.check_field()
                    beside = f"{MAX_FORM_OVERHEAD_BYTES} bytes of other fields and of headers"
                    raise MalformedUpload(f"expected a multipart form with at most {beside}, got more")
        if form is not None:
            form.finish()
        if not any(upload.file.num_bytes for upload in uploads):
            raise EmptyUpload(f"expected a video as multipart field {FIELD!r} or as the body, got 0 bytes")
        yield uploads


def _too_large(max_bytes: int, got: str) -> UploadTooLarge:
    return UploadTooLarge(f"expected videos of at most {max_bytes} bytes, got {got}")


def harmless(name: str) -> str:
    """A client's file name as plain text to tell back: its last part, printable, and not too long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:MAX_NAME_LENGTH]


class _Form:
    """A multipart form on its way: each field `file` goes where `begin` says, everything else is passed over."""

    def __init__(self, boundary: bytes | None, begin: Callable[[str | None], Upload]) -> None:
        if not boundary:
            raise MalformedUpload("expected a boundary in the multipart content type, got none")
        self._begin = begin
        self._keep: Callable[[bytes], object] | None = None
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
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

    def check_field(self) -> None:
        """Raise EmptyUpload where no field was the one expected."""
        if FIELD not in self._fields:
            found = ", ".join(map(repr, self._fields)) or "no field"
            raise EmptyUpload(f"expected a multipart field {FIELD!r}, got {found}")

    def finish(self) -> None:
        self.check_field()
        if not self._ended:
            raise MalformedUpload("expected a closing multipart boundary, the body ends before it")

    def _part_begin(self) -> None:
        self._headers, self._keep = {}, None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field == FIELD:
            name = options.get(b"filename")
            self._keep = self._begin(None if name is None else harmless(name.decode("utf-8", "replace"))).file.write
        self._fields.append(field)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._keep is not None:
            self._keep(data[start:end])

    def _end(self) -> None:
        self._ended = True

"""Bodies of inference requests and answers: bounded, and compressed or not."""

from __future__ import annotations

import gzip
import zlib
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.engine.admission import Admission
from service.engine.classifier import Classifier
from service.errors import InvalidInference, UploadTimeout, UploadTooLarge
from service.routes.upload import receiving

T = TypeVar("T", bound=BaseModel)
Coding = Literal["gzip", "deflate"]
CODINGS: tuple[Coding, ...] = ("gzip", "deflate")
LEVEL = 1
"""Of compression: answers are small, and wait for it."""
SMALL_BYTES = 1024 * 1024
"""Of a request that is no inference."""
ANY_JSON = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
"""How the description of the interface has such a body."""
BODY_ERRORS = (InvalidInference, UploadTimeout, UploadTooLarge)
"""What may be wrong with it."""


async def receive(request: Request, admission: Admission, *, max_bytes: int, timeout_s: float) -> bytearray:
    """The whole body, decompressed on its way.

    Raises:
        UploadTooLarge: more than `max_bytes`, as it came or decompressed.
        InvalidInference: an unknown or broken compression.
        UploadTimeout, NotReady: from `admission`.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes, f"one of {int(declared)}")
    inflate = _Inflate(request.headers.get("content-encoding", "identity").strip().lower())
    body, came_bytes = bytearray(), 0
    async with receiving(request, admission, timeout_s) as came:
        async for piece in request.stream():
            came(len(piece))
            came_bytes += len(piece)
            body += inflate(piece, max_bytes - len(body) + 1)
            if len(body) > max_bytes or came_bytes > max_bytes:
                raise _too_large(max_bytes, "more")
    inflate.finish()
    return body


async def receive_json(request: Request, kind: type[T], *, max_bytes: int = SMALL_BYTES) -> T:
    """A body of JSON; none at all stands for an empty object.

    Raises:
        UploadTooLarge, InvalidInference, UploadTimeout, NotReady: as `receive`.
    """
    classifier: Classifier = request.app.state.classifier
    timeout_s = classifier.settings.upload_timeout_s
    received = await receive(request, classifier.admission, max_bytes=max_bytes, timeout_s=timeout_s)
    return read_json(received or b"{}", kind)


def read_json(text: bytes | bytearray, kind: type[T]) -> T:
    """Raises InvalidInference with every fault."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'the request'}: {fault['msg']}" for fault in error.errors())
        raise InvalidInference("; ".join(faults)) from error


def accepted(request: Request) -> Coding | None:
    """The compression that the answer is to have, by the header Accept-Encoding: its first that is known here."""
    for choice in request.headers.get("accept-encoding", "").split(","):
        name, _, weight = choice.partition(";")
        for coding in CODINGS:
            if name.strip().lower() == coding and weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
                return coding
    return None


def compress(body: bytes, coding: Coding) -> bytes:
    return gzip.compress(body, LEVEL) if coding == "gzip" else zlib.compress(body, LEVEL)


class _Inflate:
    """Takes pieces of a body and gives what was compressed in them. `deflate` is zlib's format, as HTTP has it."""

    def __init__(self, coding: str) -> None:
        if coding not in (*CODINGS, "identity", ""):
            raise InvalidInference(f"Content-Encoding: expected {' or '.join(CODINGS)} or none, got {coding}")
        self._coding = coding
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS + (16 if coding == "gzip" else 0)) if coding in CODINGS else None

    def __call__(self, piece: bytes, max_bytes: int) -> bytes:
        """At most `max_bytes`; where there would be more, the rest is lost."""
        if self._zlib is None:
            return piece
        try:
            return self._zlib.decompress(piece, max_bytes)
        except zlib.error as error:
            raise InvalidInference(f"expected a body in {self._coding}, got another: {error}") from error

    def finish(self) -> None:
        if self._zlib is not None and not self._zlib.eof:
            raise InvalidInference(f"expected a body in {self._coding} to its end, got one that breaks off")
        if self._zlib is not None and self._zlib.unused_data:
            raise InvalidInference(f"expected nothing behind the end of {self._coding}, got more")


def _too_large(max_bytes: int, got: str) -> UploadTooLarge:
    return UploadTooLarge(f"expected a body of at most {max_bytes} bytes, got {got}")

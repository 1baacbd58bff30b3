"""POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from service.engine.classifier import Classifier, check_top_k
from service.errors import (
    Busy,
    DeadlineExceeded,
    DecoderCrashed,
    EmptyUpload,
    InvalidParameter,
    MalformedUpload,
    NotAVideo,
    NotReady,
    NoVideoStream,
    PictureTooLarge,
    TooManyFrames,
    TooManyStreams,
    TooMuchMemory,
    UndecodableVideo,
    UnknownModel,
    UploadTimeout,
    UploadTooLarge,
    VideoTooLong,
)
from service.routes.problem import problems
from service.routes.upload import FIELD, receive_upload
from service.schemas import Classification

router = APIRouter()

ALTERED = f"curl -d alters what it sends: use -F {FIELD}=@FILE or --data-binary @FILE"

_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"A video: the multipart field `{FIELD}`, or the body itself under any other content type.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _BINARY}}},
            "application/octet-stream": {"schema": _BINARY},
            "video/*": {"schema": _BINARY},
        },
    }
}


@router.post(
    "/classify",
    response_model=Classification,
    openapi_extra=_BODY,
    responses=problems(
        EmptyUpload,
        MalformedUpload,
        UnknownModel,
        UploadTimeout,
        UploadTooLarge,
        NotAVideo,
        NoVideoStream,
        PictureTooLarge,
        VideoTooLong,
        TooManyFrames,
        TooManyStreams,
        TooMuchMemory,
        UndecodableVideo,
        DecoderCrashed,
        InvalidParameter,
        Busy,
        NotReady,
        DeadlineExceeded,
    ),
)
async def classify(
    request: Request,
    top_k: Annotated[int | None, Query(ge=1, description="How many labels; 5 or all without it.")] = None,
    model: Annotated[str | None, Query(description="A model's name; the default model without it.")] = None,
    version: Annotated[str | None, Query(description="A model's version; the latest without it.")] = None,
) -> Response:
    """Classify a video clip."""
    classifier: Classifier = request.app.state.classifier
    settings = classifier.settings
    session = classifier.repository.find(model, version)
    num_labels = check_top_k(top_k, session)
    with classifier.admission.admit():
        async with receive_upload(
            request,
            classifier.admission,
            max_bytes=settings.max_upload_bytes,
            timeout_s=settings.upload_timeout_s,
            spool_dir=settings.spool_dir,
        ) as upload:
            classifier.metrics.upload_bytes.inc(upload.num_bytes)
            work = classifier.classify(
                upload.path,
                session,
                top_k=num_labels,
                upload_s=upload.receive_s,
                upload_bytes=upload.num_bytes,
            )
            try:
                answer = await _unless_gone(request, work)
            except (NotAVideo, UndecodableVideo) as error:
                # What such a client sends without altering it is a video like any other, so it is told only now.
                if request.headers.get("content-type") == "application/x-www-form-urlencoded":
                    raise type(error)(f"{error.detail}; {ALTERED}") from error
                raise
    return Response(answer.model_dump_json(), media_type="application/json")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Classification]) -> Classification:
    """Do the work, but drop it at once when the client hangs up."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

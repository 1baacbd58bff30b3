"""POST /classify."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.engine.classifier import Classifier, check_top_k
from service.errors import (
    Busy,
    DeadlineExceeded,
    DecoderCrashed,
    EmptyUpload,
    InvalidParameter,
    MalformedUpload,
    NoRoom,
    NotAVideo,
    NotForClips,
    NotReady,
    NoVideoStream,
    OutOfMemory,
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
from service.routes.hangup import unless_gone
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
        NotForClips,
        Busy,
        NotReady,
        OutOfMemory,
        DeadlineExceeded,
        NoRoom,
    ),
)
async def classify(
    request: Request,
    top_k: Annotated[int | None, Query(ge=1, description="How many labels; 5 or all without it.")] = None,
    model: Annotated[str | None, Query(description="A model's name; the default model without it.")] = None,
    version: Annotated[str | None, Query(description="A model's version; the latest without it.")] = None,
    sampling: Annotated[
        Literal["keyframes"] | None,
        Query(
            description="`keyframes` takes keyframes, spread over the clip, instead of the frames that the model was "
            "trained to see: a quick answer for a very long clip, and not an exact one (`clip.exact` is false). "
            "Without it the model's own sampling holds."
        ),
    ] = None,
) -> Response:
    """Classify a video clip."""
    classifier: Classifier = request.app.state.classifier
    settings = classifier.settings
    with classifier.repository.use(model, version) as chosen, classifier.admission.admit():
        num_labels = check_top_k(top_k, chosen)
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
                chosen,
                top_k=num_labels,
                sampling=sampling,
                upload_s=upload.receive_s,
                upload_bytes=upload.num_bytes,
            )
            try:
                answer = await unless_gone(request, work)
            except (NotAVideo, UndecodableVideo) as error:
                # What such a client sends without altering it is a video like any other, so it is told only now.
                if request.headers.get("content-type") == "application/x-www-form-urlencoded":
                    raise type(error)(f"{error.detail}; {ALTERED}") from error
                raise
    return Response(answer.model_dump_json(), media_type="application/json")

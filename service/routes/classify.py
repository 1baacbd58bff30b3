"""POST /classify."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.engine.classifier import Classifier, Question, Video, question
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
    RequestError,
    TooManyFiles,
    TooManyFrames,
    TooManyStreams,
    TooManyWindows,
    TooMuchMemory,
    UndecodableVideo,
    UnknownModel,
    UploadTimeout,
    UploadTooLarge,
    VideoTooLong,
)
from service.routes.hangup import unless_gone
from service.routes.problem import described, problems
from service.routes.query import OfModel, parameters, read
from service.routes.upload import FIELD, Upload, receive_uploads
from service.schemas import Classification, FileResult, Results, Timeline

router = APIRouter()

MAX_WINDOW_S = 86_400.0
ALTERED = f"curl -d alters what it sends: use -F {FIELD}=@FILE or --data-binary @FILE"

_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"A video: the multipart field `{FIELD}`, or the body itself under any other content type. The "
        "field may come several times, for several videos.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"oneOf": [_BINARY, {"type": "array", "items": _BINARY}]}},
                }
            },
            "application/octet-stream": {"schema": _BINARY},
            "video/*": {"schema": _BINARY},
        },
    }
}


class Asked(OfModel):
    """The query of /classify."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """How many labels; 5 or all without it."""
    sampling: Literal["keyframes"] | None = None
    """`keyframes` takes keyframes, spread over the clip, instead of the frames that the model was trained to see: a
    quick answer for a very long clip, and not an exact one (`clip.exact` is false). Without it the model's own sampling
    holds."""
    window_s: Annotated[float, Field(ge=0.01, le=MAX_WINDOW_S)] | None = None
    """Seconds of a window: the answer is a timeline, for which each window is classified as if it were cut out of the
    video."""
    stride_s: Annotated[float, Field(ge=0.01, le=MAX_WINDOW_S)] | None = None
    """Seconds from the start of a window to that of the next, at most `window_s`, and as much without it."""


@router.post(
    "/classify",
    response_model=Classification | Timeline | Results,
    openapi_extra={"parameters": parameters(Asked), **_BODY},
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
        TooManyFiles,
        TooManyWindows,
        InvalidParameter,
        NotForClips,
        Busy,
        NotReady,
        OutOfMemory,
        DeadlineExceeded,
        NoRoom,
    ),
)
async def classify(request: Request) -> Response:
    """Classify a video, or several.

    One is answered by its class, or with `window_s` by its timeline. Several are answered by a list, in their order, in
    which each has an answer or a problem of its own.
    """
    classifier: Classifier = request.app.state.classifier
    settings = classifier.settings
    query = read(request, Asked)
    with classifier.repository.use(query.model, query.version) as chosen, classifier.admission.admit():
        asked = question(
            chosen,
            settings,
            top_k=query.top_k,
            sampling=query.sampling,
            window_s=query.window_s,
            stride_s=query.stride_s,
        )
        began = time.monotonic()
        async with receive_uploads(
            request,
            classifier.admission,
            classifier.spool,
            max_bytes=settings.max_upload_bytes,
            max_files=settings.max_files,
            timeout_s=settings.upload_timeout_s,
        ) as uploads:
            since = time.monotonic()
            videos = [Video(upload.file.descriptor, upload.file.num_bytes, since - began, since) for upload in uploads]
            classifier.metrics.upload_bytes.inc(sum(video.num_bytes for video in videos))
            if len(videos) > 1:
                outcomes = await unless_gone(request, _answer_all(classifier, videos, asked))
                for outcome in outcomes:
                    classifier.metrics.files.labels(outcome.code if isinstance(outcome, RequestError) else "ok").inc()
                return _json(_results(request, uploads, outcomes))
            try:
                return _json(await unless_gone(request, classifier.answer(videos[0], asked)))
            except (NotAVideo, UndecodableVideo) as error:
                # What such a client sends without altering it is a video like any other, so it is told only now.
                if request.headers.get("content-type") == "application/x-www-form-urlencoded":
                    raise type(error)(f"{error.detail}; {ALTERED}") from error
                raise


async def _answer_all(
    classifier: Classifier, videos: list[Video], asked: Question
) -> list[Classification | Timeline | RequestError]:
    """Answers in the order of the videos, or why there is none.

    One more than there are decoders stand in their line, so that none is idle and others are not kept waiting by more.
    """
    places = asyncio.Semaphore(classifier.pool.num_workers + 1)

    async def answer(video: Video) -> Classification | Timeline | RequestError:
        async with places:
            try:
                if not video.num_bytes:
                    raise EmptyUpload(f"expected a video as multipart field {FIELD!r}, got 0 bytes")
                return await classifier.answer(video, asked)
            except RequestError as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(video)) for video in videos]
    return [task.result() for task in tasks]


def _results(
    request: Request, uploads: list[Upload], outcomes: list[Classification | Timeline | RequestError]
) -> Results:
    results, request_id = [], getattr(request.state, "request_id", "")
    for index, (upload, outcome) in enumerate(zip(uploads, outcomes, strict=True)):
        result = FileResult(index=index, file_name=upload.name, answer=None, problem=None)
        if isinstance(outcome, RequestError):
            problem = described(outcome.status, outcome.code, outcome.title, outcome.detail, request_id)
            results.append(result.model_copy(update={"problem": problem}))
        else:
            results.append(result.model_copy(update={"answer": outcome}))
    return Results(results=results)


def _json(answer: Classification | Timeline | Results) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")

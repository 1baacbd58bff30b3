"""POST /v2/models/NAME/infer: tensors in, tensors out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response

from service.engine.classifier import Classifier
from service.engine.model import PROBABILITIES, Model
from service.errors import (
    Busy,
    DeadlineExceeded,
    InvalidInference,
    NotReady,
    SequenceBroken,
    SequenceExpired,
    UnknownModel,
    UnknownSequence,
    UploadTimeout,
    UploadTooLarge,
)
from service.routes.hangup import unless_gone
from service.routes.problem import problems
from service.routes.v2 import body, sequences, tensors
from service.routes.v2.schemas import InferenceRequest, InferenceResponse

T = TypeVar("T")
router = APIRouter(prefix="/v2")

HEADER = "Inference-Header-Content-Length"
CLASSES = ("logits", "logits_over_time", PROBABILITIES)
"""Outputs whose last dimension is the labels."""
SMALL_BYTES = 64 * 1024
"""A body of more, and all of it JSON, is read in a thread."""

_BODY = {
    "requestBody": {
        "required": True,
        "description": "The request in JSON; binary tensors follow it, and the header "
        f"{HEADER} says how long it is. gzip and deflate are understood.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "description": "Bytes of JSON at the start of the body, where binary tensors follow.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
}
_ERRORS = problems(
    UnknownModel,
    UnknownSequence,
    InvalidInference,
    UploadTimeout,
    SequenceExpired,
    SequenceBroken,
    UploadTooLarge,
    Busy,
    NotReady,
    DeadlineExceeded,
)


@router.post(
    "/models/{name}/infer", name="infer", response_model=InferenceResponse, openapi_extra=_BODY, responses=_ERRORS
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    name="infer_version",
    response_model=InferenceResponse,
    openapi_extra=_BODY,
    responses=_ERRORS,
)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Run a model on tensors."""
    classifier: Classifier = request.app.state.classifier
    settings = classifier.settings
    with sequences.serving(classifier, name, version) as served, classifier.admission.admit():
        received = await body.receive(
            request,
            classifier.admission,
            max_bytes=settings.max_tensor_bytes,
            timeout_s=settings.upload_timeout_s,
        )
        came = time.monotonic()
        length = request.headers.get(HEADER)
        small = len(received) <= SMALL_BYTES or length is not None
        asked, binary = await _run(small, tensors.parse, received, length)
        place, sequence = sequences.place(asked.parameters, served), None
        if place is not None and not place.start:
            sequence = sequences.find(classifier.sequences, place, name, version)
        model = sequence.model if sequence else served or classifier.repository.find(name, version)
        _check_outputs(asked, model)
        inputs = await _run(small, tensors.decode, asked, binary, model, place is not None)
        deadline = came + min(settings.deadline_s, _timeout_s(asked.parameters))
        if place is None:
            work = model.infer(inputs, deadline)
        else:
            sequence = sequence or classifier.sequences.begin(model, place.key(name))
            work = sequences.step(sequence, place, inputs, deadline)
        outputs = await unless_gone(request, work)
    unasked = {state.output for state in model.states} if place is not None else set()
    head, raw = _answer(model, asked, outputs, unasked)
    return await _response(request, head, raw)


async def _run(here: bool, work: Callable[..., T], *arguments: Any) -> T:
    return work(*arguments) if here else await asyncio.to_thread(work, *arguments)


def _check_outputs(asked: InferenceRequest, model: Model) -> None:
    known = [tensor.name for tensor in model.outputs]
    for output in asked.outputs:
        if output.name not in known:
            raise InvalidInference(f"outputs: expected {', '.join(known)}, got {output.name}")
        if "shared_memory_region" in output.parameters:
            raise InvalidInference(f"{output.name}: expected no shared memory, which is not offered")
        count = output.parameters.get("classification", 0)
        if count and output.name not in CLASSES:
            raise InvalidInference(f"{output.name}: expected classification of {', '.join(CLASSES)} only")
        if not isinstance(count, int) or count < 0:
            raise InvalidInference(f"{output.name}: classification: expected a number of labels, got {count!r}")


def _timeout_s(parameters: dict[str, Any]) -> float:
    """The request's own `timeout`, which is in microseconds; 0 or none is without bound."""
    timeout_us = parameters.get("timeout") or float("inf")
    if not isinstance(timeout_us, int | float) or timeout_us < 0:
        raise InvalidInference(f"timeout: expected microseconds, got {timeout_us!r}")
    return timeout_us / 1e6


def _answer(
    model: Model, asked: InferenceRequest, outputs: dict[str, np.ndarray], unasked: Collection[str]
) -> tuple[InferenceResponse, list[bytes]]:
    """The head of the answer, and what follows it.

    Args:
        unasked: outputs that are not given where none is asked for by name.
    """
    default = bool(asked.parameters.get("binary_data_output", False))
    wanted = {output.name: output.parameters for output in asked.outputs}
    encoded = []
    for tensor in model.outputs:
        if tensor.name not in wanted if wanted else tensor.name in unasked:
            continue
        parameters = wanted.get(tensor.name, {})
        datatype, values = str(tensor.datatype), outputs[tensor.name]
        if count := parameters.get("classification", 0):
            datatype, values = "BYTES", _classify(values, model.session.manifest.labels, count)
        encoded.append(
            tensors.encode(tensor.name, datatype, values, binary=bool(parameters.get("binary_data", default)))
        )
    head = InferenceResponse(
        model_name=model.name,
        model_version=model.version,
        id=asked.id or None,
        parameters={"provider": model.session.provider, "model_sha256": model.session.sha256},
        outputs=[tensor for tensor, _ in encoded],
    )
    return head, [raw for _, raw in encoded]


def _classify(values: np.ndarray, labels: tuple[str, ...], count: int) -> np.ndarray:
    """The largest values of each row as `value:index:label`, the largest first.

    Shape: [..., classes] -> str [..., count].
    """
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    top = np.take_along_axis(values, order, -1)
    words = [f"{value:f}:{index}:{labels[index]}" for value, index in zip(top.flat, order.flat, strict=True)]
    return np.array(words, object).reshape(order.shape)


async def _response(request: Request, head: InferenceResponse, raw: list[bytes]) -> Response:
    text = head.model_dump_json(exclude_none=True).encode()
    headers, media_type = {}, "application/json"
    content = text
    if any(output.parameters for output in head.outputs):
        headers[HEADER], media_type = str(len(text)), "application/octet-stream"
        content = b"".join([text, *raw])
    if coding := body.accepted(request):
        content = await asyncio.to_thread(body.compress, content, coding)
        headers |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
    return Response(content, headers=headers, media_type=media_type)

"""POST /v2/repository: which models there are, and, where the settings allow it, which are served."""

from __future__ import annotations

import base64
import re
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.engine.classifier import Classifier
from service.errors import (
    InvalidInference,
    ModelControlOff,
    ModelRefused,
    UnknownModel,
)
from service.routes.problem import problems
from service.routes.v2.body import ANY_JSON, BODY_ERRORS, read_json, receive_json
from service.routes.v2.schemas import IndexEntry, IndexRequest, Parameters

router = APIRouter(prefix="/v2/repository")


class _Control(BaseModel):
    parameters: Parameters = {}


class _Config(BaseModel, extra="forbid"):
    """What a configuration may say: nothing else is configured outside a model's file."""

    name: str | None = None
    backend: Literal["onnxruntime"] = "onnxruntime"
    platform: Literal["onnxruntime_onnx"] = "onnxruntime_onnx"


_SENT = re.compile(r"file:([A-Za-z0-9][A-Za-z0-9._-]{0,63})/model\.onnx")


@router.post(
    "/index",
    name="repository_index",
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/IndexRequest"}}}}
    },
    responses=problems(*BODY_ERRORS),
)
async def index(request: Request) -> list[IndexEntry]:
    """Every model in the folders, or that was there, and what became of it."""
    classifier: Classifier = request.app.state.classifier
    asked = await receive_json(request, IndexRequest)
    return [
        IndexEntry(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        for entry in await classifier.repository.index()
        if entry.model is not None or not asked.ready
    ]


@router.post(
    "/models/{name}/load",
    name="repository_load",
    response_class=Response,
    openapi_extra=ANY_JSON,
    responses=problems(UnknownModel, ModelControlOff, ModelRefused, *BODY_ERRORS),
)
async def load(request: Request, name: str) -> Response:
    """Serve what lies in the folders under this name: new and changed files take over once they are warm.

    The parameters `file:VERSION/model.onnx`, in base64, stand in the place of the folders until the next load.
    """
    classifier = _controlled(request)
    asked = await receive_json(request, _Control, max_bytes=classifier.settings.max_tensor_bytes)
    await classifier.repository.load(name, _sent(name, asked.parameters))
    return Response()


@router.post(
    "/models/{name}/unload",
    name="repository_unload",
    response_class=Response,
    openapi_extra=ANY_JSON,
    responses=problems(UnknownModel, ModelControlOff, *BODY_ERRORS),
)
async def unload(request: Request, name: str) -> Response:
    """Serve no version of the model any more. Requests under way finish."""
    classifier = _controlled(request)
    await receive_json(request, _Control)
    await classifier.repository.unload(name)
    return Response()


def _controlled(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    if classifier.settings.model_control == "none":
        raise ModelControlOff("expected the setting TTVIDEO_MODEL_CONTROL to be explicit, got none")
    return classifier


def _sent(name: str, parameters: Parameters) -> dict[str, bytes] | None:
    """The files of a request by their version; None where it has none.

    Raises:
        InvalidInference: another parameter, a path that is no model's, or a configuration that asks for anything.
    """
    sent = {}
    for key, value in parameters.items():
        if key == "config":
            if read_json(str(value).encode(), _Config).name not in (None, name):
                raise InvalidInference(f"config: name: expected {name}, got {value}")
        elif match := _SENT.fullmatch(key):
            try:
                sent[match[1]] = base64.b64decode(value, validate=True)
            except (ValueError, TypeError) as error:
                raise InvalidInference(f"{key}: expected base64: {error}") from error
        else:
            raise InvalidInference(f"parameters: expected config and file:VERSION/model.onnx, got {key}")
    return sent or None

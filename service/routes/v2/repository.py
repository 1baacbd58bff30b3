"""POST /v2/repository: which models there are, and, where the settings allow it, which are served."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.engine.classifier import Classifier
from service.errors import (
    InvalidInference,
    ModelControlOff,
    ModelRefused,
    UnknownModel,
    UploadTimeout,
    UploadTooLarge,
)
from service.routes.problem import problems
from service.routes.v2.body import receive_json
from service.routes.v2.schemas import IndexEntry, IndexRequest, Parameters

router = APIRouter(prefix="/v2/repository")

_BODY_ERRORS = (InvalidInference, UploadTimeout, UploadTooLarge)
_JSON = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


class _Control(BaseModel):
    parameters: Parameters = {}


@router.post(
    "/index",
    name="repository_index",
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/IndexRequest"}}}}
    },
    responses=problems(*_BODY_ERRORS),
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
    openapi_extra=_JSON,
    responses=problems(UnknownModel, ModelControlOff, ModelRefused, *_BODY_ERRORS),
)
async def load(request: Request, name: str) -> Response:
    """Serve what lies in the folders under this name: new and changed files take over once they are warm."""
    classifier = _controlled(request)
    asked = await receive_json(request, _Control)
    if asked.parameters:
        raise InvalidInference(
            f"parameters: expected none, since a model file says everything itself, got {', '.join(asked.parameters)}"
        )
    await classifier.repository.load(name)
    return Response()


@router.post(
    "/models/{name}/unload",
    name="repository_unload",
    response_class=Response,
    openapi_extra=_JSON,
    responses=problems(UnknownModel, ModelControlOff, *_BODY_ERRORS),
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

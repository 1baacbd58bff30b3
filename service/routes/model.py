"""GET /model and GET /models."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.engine.model import Model
from service.engine.repository import Repository
from service.errors import UnknownModel
from service.routes.problem import problems
from service.routes.query import OfModel, parameters, read
from service.schemas import AbsentModel, ModelInfo, ModelList

router = APIRouter()


@router.get("/model", openapi_extra={"parameters": parameters(OfModel)}, responses=problems(UnknownModel))
async def model(request: Request) -> ModelInfo:
    """One model: its manifest, and where it runs."""
    repository: Repository = request.app.state.classifier.repository
    query = read(request, OfModel)
    return _info(repository.find(query.model, query.version), repository)


@router.get("/models")
async def models(request: Request) -> ModelList:
    """Every model served."""
    repository: Repository = request.app.state.classifier.repository
    return ModelList(
        models=[_info(model, repository) for model in repository.models],
        absent=[
            AbsentModel(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
            for entry in repository.entries
            if entry.model is None
        ],
    )


def _info(model: Model, repository: Repository) -> ModelInfo:
    session = model.session
    return ModelInfo(
        name=model.name,
        version=model.version,
        default=repository.is_default(model),
        provider=session.provider,
        provider_reason=session.provider_reason,
        cuda_graphs=session.graphs,
        cuda_graphs_reason=session.graphs_reason,
        sha256=session.sha256,
        refused=repository.entry(model).reason or None,
        clip_fault=model.clip_fault,
        manifest=session.manifest,
    )

"""GET /model and GET /models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.engine.repository import Repository
from service.engine.session import Session
from service.errors import InvalidParameter, UnknownModel
from service.routes.problem import problems
from service.schemas import ModelInfo, ModelList

router = APIRouter()


@router.get("/model", responses=problems(UnknownModel, InvalidParameter))
async def model(
    request: Request,
    model: Annotated[str | None, Query(description="A model's name; the default model without it.")] = None,
    version: Annotated[str | None, Query(description="A model's version; the latest without it.")] = None,
) -> ModelInfo:
    """One model: its manifest, and where it runs."""
    repository: Repository = request.app.state.classifier.repository
    return _info(repository.find(model, version), repository)


@router.get("/models")
async def models(request: Request) -> ModelList:
    """Every model served."""
    repository: Repository = request.app.state.classifier.repository
    return ModelList(models=[_info(session, repository) for session in repository.sessions])


def _info(session: Session, repository: Repository) -> ModelInfo:
    return ModelInfo(
        name=session.manifest.name,
        version=session.manifest.version,
        default=session is repository.default,
        provider=session.provider,
        provider_reason=session.provider_reason,
        sha256=session.sha256,
        manifest=session.manifest,
    )

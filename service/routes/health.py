"""GET /livez, /readyz and the index at /."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service import __version__
from service.engine.classifier import Classifier
from service.errors import NotReady
from service.routes.problem import problems
from service.schemas import Health, Index

router = APIRouter()

PROBES = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Open to everybody, and as often as they like."""


@router.get("/livez")
@router.head("/livez", include_in_schema=False)
async def livez() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/readyz", responses=problems(NotReady))
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Health:
    """Every model is warm, a decoder lives, and no shutdown has begun."""
    check_ready(request.app.state.classifier)
    return Health(status="ready")


def check_ready(classifier: Classifier) -> None:
    """Raise NotReady with the reason where clips cannot be taken."""
    if not classifier.ready:
        raise NotReady("the service is shutting down" if classifier.admission.draining else "the service is starting")
    if not classifier.pool.num_alive:
        raise NotReady("no decoder process lives; new ones are being started", retry_after_s=1.0)


@router.get("/")
async def index() -> Index:
    """Where things are."""
    links = {name: f"/{name}" for name in ("classify", "model", "models", "livez", "readyz", "metrics", "docs")}
    return Index(service="ttvideo", version=__version__, links=links)

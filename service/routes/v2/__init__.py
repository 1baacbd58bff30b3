"""The Open Inference Protocol, version 2, over HTTP, with the extensions that `metadata.EXTENSIONS` names."""

from __future__ import annotations

from fastapi import APIRouter

from service.routes.v2 import infer, metadata, repository, settings

router = APIRouter()
for part in (metadata, infer, repository, settings):
    router.include_router(part.router)

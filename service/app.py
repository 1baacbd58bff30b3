"""The web application: `create_app(settings)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__
from service.engine.classifier import Classifier
from service.errors import MethodNotAllowed, RequestError
from service.metrics import Metrics
from service.middleware import Observe
from service.routes import classify, health, metrics, model, openapi, problem, v2
from service.routes.upload import check_spool
from service.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """An app whose lifespan starts the decoders and the models and, at its end, answers what it accepted.

    Raises:
        StartError: from the lifespan.
    """
    series = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        check_spool(settings.spool_dir)
        classifier = app.state.classifier = Classifier(settings, series)
        await classifier.start()
        try:
            yield
        finally:
            await classifier.close()

    app = FastAPI(
        title="ttvideo",
        version=__version__,
        summary="Upload a video clip, get its class.",
        description=openapi.description(settings.max_upload_bytes),
        generate_unique_id_function=lambda route: route.name,
        responses=problem.problems(MethodNotAllowed, RequestError),
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    for part in (classify, model, health, metrics, v2):
        app.include_router(part.router)
    problem.install(app)
    openapi.install(app, settings.max_upload_bytes)
    app.add_middleware(Observe, metrics=series)
    return app

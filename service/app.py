"""The web application: `create_app(settings)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service import __version__
from service.access import Access, Origins, rate_limit
from service.engine.classifier import Classifier
from service.errors import MethodNotAllowed, RequestError
from service.keys import Keys
from service.metrics import Metrics
from service.middleware import Observe
from service.routes import classify, health, metrics, model, openapi, problem, stream, v2
from service.routes.v2.infer import HEADER
from service.settings import Settings
from service.spans import Spans


def create_app(settings: Settings, spans: Spans | None = None) -> FastAPI:
    """An app whose lifespan starts the decoders and the models and, at its end, answers what it accepted.

    Args:
        spans: makes traces, if there are to be any.

    Raises:
        StartError: API keys that cannot be read; anything else from the lifespan.
    """
    series = Metrics()
    keys = Keys(settings.api_keys.get_secret_value(), settings.api_keys_file)
    rate = rate_limit(settings.rate_limit, settings.rate_burst)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        classifier = app.state.classifier = Classifier(settings, series)
        classifier.spool.check()
        await classifier.start()
        try:
            yield
        finally:
            await classifier.close()
            if spans:
                await asyncio.to_thread(spans.close)

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
    for part in (classify, stream, model, health, metrics, v2):
        app.include_router(part.router)
    problem.install(app)
    openapi.install(app, settings.max_upload_bytes, with_keys=bool(keys), with_rates=rate is not None)
    # The last one added is the outermost: a browser's preflight brings no key, and reads why it was refused.
    if keys or rate:
        app.add_middleware(Access, keys=keys, rate=rate, open_metrics=settings.open_metrics)
    app.add_middleware(Origins, others=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", "Content-Type", HEADER],
            expose_headers=["X-Request-ID", "Retry-After", HEADER],
        )
    app.add_middleware(Observe, metrics=series, spans=spans)
    return app

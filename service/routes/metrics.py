"""GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.metrics import Metrics

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Every series, as Prometheus reads them."""
    series: Metrics = request.app.state.classifier.metrics
    return Response(series.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

"""OpenTelemetry traces: a span for each request and one for each of its stages.

An option (`pip install '.[otel]'`), off until the standard OTEL_* variables ask for it, and not imported before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service import __version__
from service.trace import Stage, Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

INSTALL = "pip install -c deploy/constraints.txt '.[otel]'"
ASKING = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CLOSE_S = 2.0
"""How long the last spans may take to leave."""


def asked_for(environment: Mapping[str, str] = os.environ) -> str | None:
    """The variable that asks for traces."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return next((name for name in ASKING if environment.get(name)), None)


def from_environment() -> Spans | None:
    """Spans as the OTEL_* variables have them; None where they ask for none, or for what is not to be had here, which
    the log says."""
    asking = asked_for()
    if asking is None:
        return None
    try:
        return Spans(_provider())
    except ImportError as error:
        log.warning("%s asks for traces, and there are none: %s is not installed; %s", asking, error.name, INSTALL)
    except ValueError as error:
        log.warning("%s asks for traces, and there are none: %s", asking, error)
    return None


def _provider() -> TracerProvider:
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    exporter: SpanExporter
    if kind == "console":
        exporter = ConsoleSpanExporter()
    elif kind == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        if protocol != "http/protobuf":
            raise ValueError(f"expected the protocol http/protobuf, got {protocol!r}")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    else:
        raise ValueError(f"expected OTEL_TRACES_EXPORTER to be otlp, console or none, got {kind!r}")
    name = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, "ttvideo")
    resource = Resource.create({SERVICE_NAME: name, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Spans:
    """Makes the spans, by a provider of OpenTelemetry's SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ttvideo", __version__)

    def begin(self, method: str, headers: Mapping[str, str], trace: Trace) -> RequestSpan:
        """A request came, maybe as part of somebody else's trace (W3C traceparent)."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

        span = self._tracer.start_span(
            method,
            propagate.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": method, "ttvideo.request_id": trace.request_id},
        )
        context = span.get_span_context()
        trace.ids = {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
        return RequestSpan(self, span)

    def child(self, parent: Span, stage: Stage) -> None:
        """A stage ended."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.status import Status, StatusCode

        ended = time.time_ns() - int(1e9 * (time.monotonic() - stage.began_s - stage.seconds))
        span = self._tracer.start_span(
            stage.name, set_span_in_context(parent), start_time=ended - int(1e9 * stage.seconds)
        )
        if stage.failure is not None:
            code = getattr(stage.failure, "code", type(stage.failure).__name__)
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(ended)

    def close(self) -> None:
        """Send what is left. Blocks, but no longer than `CLOSE_S`: a collector that is not there is not waited for."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(CLOSE_S)


class RequestSpan:
    """The span of one request, under way."""

    def __init__(self, spans: Spans, span: Span) -> None:
        self._spans, self._span = spans, span

    def stage(self, stage: Stage) -> None:
        self._spans.child(self._span, stage)

    def end(self, method: str, route: str, status: int, code: str, trace: Trace) -> None:
        """The request was answered."""
        from opentelemetry.trace.status import Status, StatusCode

        attributes: dict[str, Any] = {"http.route": route, "http.response.status_code": status}
        if trace.model:
            attributes |= {f"ttvideo.model.{name}": value for name, value in trace.model._asdict().items()}
        if trace.key:
            attributes["ttvideo.key"] = trace.key
        if code != "ok":
            attributes["error.type"] = code
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(attributes)
        if status >= 500 or not status:  # an error of the client's is none of the server's span
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()

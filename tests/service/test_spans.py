"""Traces, as OpenTelemetry's SDK keeps them in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import app, spans
from service.settings import Settings
from service.spans import Spans, asked_for, from_environment
from tests.service import conftest
from tests.service.conftest import Service, wait_until

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(settings: Settings, exporter: InMemorySpanExporter) -> Iterator[Service]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "create_app", lambda settings: app.create_app(settings, Spans(provider)))
        with conftest.running(settings) as service:
            yield service


def finished(exporter: InMemorySpanExporter, num_spans: int) -> dict[str, ReadableSpan]:
    wait_until(lambda: len(exporter.get_finished_spans()) == num_spans, f"{num_spans} spans are there")
    found = {span.name: span for span in exporter.get_finished_spans()}
    exporter.clear()
    return found


def test_a_request_is_a_span_with_one_for_each_stage(
    traced: Service, exporter: InMemorySpanExporter, clips: dict[str, Path]
) -> None:
    assert traced.post(clips["red"], headers=TRACEPARENT | {"x-request-id": "mine"}).status_code == 200
    found = finished(exporter, 5)
    whole = found.pop("POST /classify")
    assert whole.kind is SpanKind.SERVER
    assert whole.parent is not None
    assert f"{whole.parent.trace_id:032x}-{whole.parent.span_id:016x}" == f"{TRACE_ID}-{PARENT_ID}"
    assert dict(whole.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "ttvideo.request_id": "mine",
        "ttvideo.model.name": "colours",
        "ttvideo.model.version": "1",
        "ttvideo.model.provider": "cpu",
    }
    assert list(found) == ["upload", "queue", "decode", "infer"]
    ended = 0
    for span in found.values():
        assert span.parent == whole.context
        assert whole.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert whole.end_time is not None
        slack_ns = 1_000_000  # two clocks are read one after the other
        assert whole.start_time - slack_ns <= span.start_time <= span.end_time <= whole.end_time + slack_ns
        assert span.start_time >= ended - slack_ns
        ended = span.end_time


def test_the_stage_that_failed_is_told(traced: Service, exporter: InMemorySpanExporter) -> None:
    assert traced.post(content=b"not a video").status_code == 415
    found = finished(exporter, 4)
    assert found["decode"].status.status_code is StatusCode.ERROR
    assert (found["decode"].attributes or {})["error.type"] == "not_a_video"
    assert (found["POST /classify"].attributes or {})["error.type"] == "not_a_video"
    assert found["POST /classify"].status.status_code is StatusCode.UNSET, "the client's error, not the server's"
    assert found["POST /classify"].parent is None


def test_an_error_of_the_service_is_one_of_its_span(
    traced: Service, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced.classifier.admission, "draining", True)
    assert traced.post(content=b"x").status_code == 503
    status = finished(exporter, 1)["POST /classify"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "not_ready")


@pytest.mark.parametrize(
    ("environment", "asking"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_standard_variables_ask_for_them(environment: dict[str, str], asking: str | None) -> None:
    assert asked_for(environment) == asking


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    assert from_environment() is None
    assert "expected OTEL_TRACES_EXPORTER to be otlp, console or none, got 'zipkin'" in caplog.text
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert from_environment() is None
    assert "is not installed" in caplog.text
    assert spans.INSTALL in caplog.text


def test_nothing_of_it_is_imported_unasked() -> None:
    code = "import sys, service.server; assert not [name for name in sys.modules if 'opentelemetry.sdk' in name]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

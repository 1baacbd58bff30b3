"""Traces, as OpenTelemetry's SDK keeps them in memory."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import app, spans
from service.settings import Settings
from service.spans import Spans, asked_for, from_environment
from tests.service import conftest
from tests.service.conftest import Service, wait_until
from tests.serving import served

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


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, never = TracerProvider(shutdown_on_exit=False), threading.Event()
    monkeypatch.setattr(provider, "shutdown", never.wait)
    monkeypatch.setattr(spans, "CLOSE_S", 0.05)
    Spans(provider).close()
    never.set()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and the bodies that were sent to its /v1/traces."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_a_collector_gets_them(
    collector: tuple[str, list[bytes]], clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with served() as (process, address, _):
        files = {"file": clips["red"].read_bytes()}
        assert httpx.post(f"{address}/classify", files=files, headers=TRACEPARENT, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    sent = [ExportTraceServiceRequest.FromString(body).resource_spans[0] for body in bodies]
    told = {attribute.key: attribute.value.string_value for attribute in sent[0].resource.attributes}
    assert (told["service.name"], told["deployment.environment.name"]) == ("ttvideo", "test")
    whole = [span for part in sent for scope in part.scope_spans for span in scope.spans]
    assert sorted(span.name for span in whole) == ["POST /classify", "decode", "infer", "queue", "upload"]
    assert {span.trace_id.hex() for span in whole} == {TRACE_ID}


def test_nothing_of_it_is_imported_unasked() -> None:
    code = "import sys, service.server; assert not [name for name in sys.modules if 'opentelemetry.sdk' in name]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

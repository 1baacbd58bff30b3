"""The routes beside /classify, the API's own description, and what the service must not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from service.errors import InvalidModel, StartError
from service.manifest import Manifest
from service.settings import Settings
from tests.service.conftest import Service, running
from tests.service.routes.test_problem import check_problem


def test_model(service: Service) -> None:
    info = service.get("/model").json()
    assert (info["name"], info["version"], info["default"]) == ("colours", "1", True)
    assert (info["provider"], info["provider_reason"]) == ("cpu", None)
    assert Manifest.model_validate(info["manifest"]).labels == ("red", "green", "blue", "dark")
    other = service.get("/model", params={"model": "tags"}).json()
    assert (other["name"], other["default"]) == ("tags", False)


def test_models(service: Service) -> None:
    models = service.get("/models").json()["models"]
    assert [f"{m['name']}/{m['version']}" for m in models] == ["colours/1", "colours/2", "moving_digits/1", "tags/1"]
    assert [m["default"] for m in models] == [True, False, False, False]


def test_health_and_index(service: Service) -> None:
    assert service.get("/livez").json() == {"status": "live"}
    assert service.get("/readyz").json() == {"status": "ready"}
    index = service.get("/").json()
    assert index["service"] == "ttvideo"
    for name, link in index["links"].items():
        assert service.get(link).status_code == (405 if name == "classify" else 200)


def test_not_ready_before_the_start_and_while_draining(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(service.classifier, "_started", False)
        assert check_problem(service.get("/readyz"), 503, "not_ready")["detail"] == "the service is starting"
    with monkeypatch.context() as patch:
        patch.setattr(service.classifier.admission, "draining", True)
        assert check_problem(service.get("/readyz"), 503, "not_ready")["detail"] == "the service is shutting down"
        check_problem(service.post(content=b"x"), 503, "not_ready")
        assert service.get("/livez").status_code == 200
    assert service.get("/readyz").status_code == 200


def test_metrics(service: Service, clips: dict[str, Path]) -> None:
    service.post(clips["red"])
    response = service.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'ttvideo_requests_total{code="ok",route="/classify",status="200"}',
        'ttvideo_stage_seconds_count{stage="decode"}',
        'ttvideo_batch_size_count{model="colours"}',
        'ttvideo_provider_info{model="colours",provider="cpu",reason="",version="1"} 1.0',
        'ttvideo_model_nodes{model="colours",provider="CPUExecutionProvider",version="1"}',
        'ttvideo_batch_limit{model="colours",version="1"} 16.0',
        'ttvideo_queue_depth{queue="decode"} 0.0',
        "ttvideo_decode_workers 2.0",
        "ttvideo_decode_workers_wanted 2.0",
        "ttvideo_requests_in_flight_limit 64.0",
        "ttvideo_decode_workers_replaced_total 0.0",
        "ttvideo_requests_in_flight 0.0",
        "ttvideo_ready 1.0",
        "ttvideo_frames_decoded_total",
        "ttvideo_upload_bytes_total",
    ):
        assert line in response.text


def test_openapi_describes_the_answers(service: Service, clips: dict[str, Path]) -> None:
    schema: dict[str, Any] = service.get("/openapi.json").json()
    answers = schema["paths"]["/classify"]["post"]["responses"]
    assert " ".join(sorted(answers)) == "200 400 403 404 405 408 413 415 422 500 503 504 507"
    either = answers["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [kind["$ref"].rpartition("/")[2] for kind in either] == ["Classification", "Timeline", "Results"]
    for status, answer in answers.items():
        if status != "200":
            assert list(answer["content"]) == ["application/problem+json"]

    def check(body: object, name: str) -> None:
        jsonschema.validate(body, {"$ref": f"#/components/schemas/{name}", "components": schema["components"]})

    check(service.post(clips["red"]).json(), "Classification")
    check(service.post(clips["red"], params={"window_s": 0.5}).json(), "Timeline")
    several = [("file", (None, b"no video")), ("file", ("a.mp4", clips["red"].read_bytes()))]
    check(service.post(files=several).json(), "Results")
    check(service.post().json(), "Problem")
    check(service.get("/model").json(), "ModelInfo")
    check(service.get("/models").json(), "ModelList")


def test_openapi_leaves_nothing_unsaid(service: Service) -> None:
    schema: dict[str, Any] = service.get("/openapi.json").json()
    for name, part in schema["components"]["schemas"].items():
        assert part["description"], name
        assert "Raises" not in part["description"]
        for field, about in part["properties"].items():
            assert "$ref" in about or about["description"], f"{name}.{field}"
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert {operation["operationId"] for operation in operations} == {
        "classify",
        "model",
        "models",
        "livez",
        "readyz",
        "index",
        "metrics",
        *("server_metadata", "server_live", "server_ready", "all_statistics"),
        *("model_metadata", "model_config", "model_ready", "model_statistics"),
        *("model_version_metadata", "model_version_config", "model_version_ready", "model_version_statistics"),
        *("infer", "infer_version", "repository_index", "repository_load", "repository_unload"),
        *("log_settings", "update_log_settings", "trace_settings", "update_trace_settings"),
        *("model_trace_settings", "update_model_trace_settings"),
    }
    for operation in operations:
        assert {"200", "405", "500"} <= set(operation["responses"])
        for answer in operation["responses"].values():
            assert "X-Request-ID" in answer["headers"]
    answers = schema["paths"]["/classify"]["post"]["responses"]
    assert "Retry-After" in answers["503"]["headers"]
    assert "2000000 bytes" in answers["413"]["description"]
    assert "2000000 bytes (1.9 MiB), as one of mp4, mov" in schema["info"]["description"]
    code = schema["components"]["schemas"]["Problem"]["properties"]["code"]
    assert {"busy", "upload_timeout", "not_found", "internal_error"} <= set(code["enum"])
    assert "`upload_timeout` (408)" in code["description"]


def test_probes_may_ask_for_the_head(service: Service) -> None:
    for path in ("/livez", "/readyz"):
        response = httpx.head(f"{service.url}{path}")
        assert (response.status_code, response.content) == (200, b"")


def test_a_bad_model_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a/1/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_text("not onnx")
    with (
        pytest.raises(InvalidModel, match="ONNX Runtime cannot load it"),
        running(Settings(models=tmp_path, provider="cpu")),
    ):
        pass


def test_a_spool_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    settings = Settings(spool_dir=tmp_path / "none")
    with pytest.raises(StartError, match=r"expected a folder for uploads .*none"), running(settings):
        pass


def test_the_service_stands_alone() -> None:
    code = (
        "import sys, service.app, service.server, service.commandline\n"
        "print(sorted({'torch', 'onnx', 'safetensors', 'ttmodels', 'exporters'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

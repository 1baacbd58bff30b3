"""The Open Inference Protocol by its own client: what the service and its models are, and how errors are answered."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from service import __version__
from service.engine.repository import Repository
from service.routes import problem
from tests.service.conftest import Service, wait_until
from tests.service.routes.test_upload import talk


def clip_input(batch: int = 1, time: int = 8, *, seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, time, height, width, 3), np.uint8)


def given(name: str, values: np.ndarray, *, binary: bool = True) -> InferInput:
    datatype = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}[values.dtype.name]
    return InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


@pytest.fixture
def client(service: Service) -> Iterator[InferenceServerClient]:
    host, port = service.address
    with InferenceServerClient(f"{host}:{port}") as opened:
        yield opened


def check_error(response: httpx.Response, status: int) -> str:
    """The response is an error of the protocol; returns what it says."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert response.headers["x-request-id"]
    return str(body["error"])


def test_the_server(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("ttvideo", __version__)
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_not_ready_while_draining(
    service: Service, client: InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.classifier.admission, "draining", True)
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert check_error(service.get("/v2/health/ready"), 503) == "the service is shutting down"
    with pytest.raises(InferenceServerException, match="the service is shutting down") as caught:
        client.infer("colours", [given("frames", clip_input())])
    assert caught.value.status() == "503"


def test_a_model_that_is_there(client: InferenceServerClient) -> None:
    assert client.is_model_ready("colours")
    assert client.is_model_ready("colours", "1")
    assert not client.is_model_ready("colours", "3")
    assert not client.is_model_ready("shapes")


def test_metadata(client: InferenceServerClient) -> None:
    metadata = client.get_model_metadata("colours")
    assert metadata == {
        "name": "colours",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "frames", "datatype": "UINT8", "shape": [-1, -1, 24, 32, 3]},
            {"name": "lengths", "datatype": "INT32", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "logits_over_time", "datatype": "FP32", "shape": [-1, -1, 4]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
        ],
    }
    assert client.get_model_metadata("colours", "1") == metadata | {"versions": ["1"]}


def test_config_as_perf_analyzer_reads_it(client: InferenceServerClient) -> None:
    config = client.get_model_config("tags", "1")
    assert (config["name"], config["platform"], config["backend"]) == ("tags", "onnxruntime_onnx", "onnxruntime")
    assert config["max_batch_size"] == 16
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert config["input"] == [
        {"name": "frames", "data_type": "TYPE_UINT8", "dims": [-1, 16, 16, 3], "optional": False},
        {"name": "lengths", "data_type": "TYPE_INT32", "dims": [1], "reshape": {"shape": []}, "optional": True},
    ]
    assert [output["dims"] for output in config["output"]] == [[4], [-1, 4], [4]]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_statistics(service: Service, client: InferenceServerClient, clips: dict[str, Path]) -> None:
    def counts() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("tags", "1")["model_stats"]
        assert (found["name"], found["version"]) == ("tags", "1")
        return dict(found)

    before = counts()
    frames = clip_input(3, 4, height=16, width=16)
    client.infer("tags", [given("frames", frames)])
    service.post(clips["red"], params={"model": "tags"})
    with pytest.raises(InferenceServerException):
        client.infer("tags", [given("frames", frames)], timeout=1)  # a microsecond
    after = counts()
    assert after["inference_count"] - before["inference_count"] == 4
    assert 2 <= after["execution_count"] - before["execution_count"] <= 4
    assert after["last_inference"] > 1.7e12
    stats, old = after["inference_stats"], before["inference_stats"]
    assert stats["success"]["count"] - old["success"]["count"] == 2
    assert stats["fail"]["count"] - old["fail"]["count"] == 1
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert stats[stage]["count"] == stats["success"]["count"]
    assert 0 < stats["compute_infer"]["ns"] < stats["success"]["ns"]
    assert stats["cache_hit"] == {"count": 0, "ns": 0}
    assert sum(b["batch_size"] * b["compute_infer"]["count"] for b in after["batch_stats"]) == after["inference_count"]
    everything = client.get_inference_statistics()["model_stats"]
    assert [f"{m['name']}/{m['version']}" for m in everything] == [
        *("colours/1", "colours/2", "moving_digits/1", "tags/1"),
    ]
    assert [m["version"] for m in client.get_inference_statistics("colours")["model_stats"]] == ["1", "2"]


def test_settings_are_shown_and_stay(client: InferenceServerClient) -> None:
    shown = client.get_log_settings()
    assert (shown["log_info"], shown["log_verbose_level"]) == (True, 0)
    assert client.update_log_settings({"log_info": True}) == shown
    with pytest.raises(InferenceServerException, match=r"log_verbose_level: expected 0, .* got 1"):
        client.update_log_settings({"log_verbose_level": 1})
    traced = client.get_trace_settings()
    assert traced["trace_level"] == ["OFF"] == client.get_trace_settings("colours")["trace_level"]
    assert client.update_trace_settings(settings={"trace_rate": None}) == traced
    with pytest.raises(InferenceServerException, match=r"trace_level: expected .*requests are not traced"):
        client.update_trace_settings("colours", {"trace_level": ["TIMESTAMPS"]})


def test_the_index_is_open_and_control_is_not(client: InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    names = [f"{entry['name']}/{entry['version']}" for entry in index]
    assert names == ["colours/1", "colours/2", "moving_digits/1", "tags/1"]
    assert {(entry["state"], entry["reason"]) for entry in index} == {("READY", "")}
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="TTVIDEO_MODEL_CONTROL to be explicit, got none") as caught:
            change("colours")
        assert caught.value.status() == "403"


def test_shared_memory_is_not_offered(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Not Found"):
        client.get_system_shared_memory_status()
    frames = InferInput("frames", [1, 8, 24, 32, 3], "UINT8")
    frames.set_shared_memory("region", 8 * 24 * 32 * 3)
    with pytest.raises(InferenceServerException, match=r"frames: .*got shared memory, which is not offered"):
        client.infer("colours", [frames])


def test_every_error_has_the_protocols_form(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Not Found" in check_error(service.get("/v2/nowhere"), 404)
    assert "Not Found" in check_error(service.get("/v2/"), 404)
    assert "Not Allowed" in check_error(service.get("/v2/models/colours/infer"), 405)
    assert "Not Allowed" in check_error(httpx.post(f"{service.url}/v2"), 405)
    said = check_error(service.get("/v2/models/shapes"), 404)
    assert said == "expected one of colours/1, colours/2, moving_digits/1, tags/1; got shapes"
    assert "got colours/9" in check_error(service.get("/v2/models/colours/versions/9/config"), 404)
    for text in (b"{", b"[]", b'{"inputs": 5}', b"\xff"):
        check_error(httpx.post(f"{service.url}/v2/models/colours/infer", content=text), 400)
        check_error(httpx.post(f"{service.url}/v2/repository/index", content=text.replace(b"inputs", b"ready")), 400)

    def explode(*arguments: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Repository, "find", explode)
    assert "secret" not in check_error(service.get("/v2/models/colours"), 500)


def test_a_body_that_is_too_large(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    monkeypatch.setattr(problem, "KEEP_BYTES", 100)
    hurried = service.classifier.settings.model_copy(update={"max_tensor_bytes": 1000, "upload_timeout_s": 0.2})
    monkeypatch.setattr(service.classifier, "settings", hurried)
    path = b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: x\r\n"
    for head, body, status in (
        (b"Content-Length: 2000\r\n", b"", b"413"),
        (b"Transfer-Encoding: chunked\r\n", b"7d0\r\n" + b"x" * 2000 + b"\r\n", b"413"),
        (b"Content-Length: 500\r\n", b"x", b"408"),
    ):
        said = talk(service.address, path + head + b"\r\n", body)
        assert said.startswith(b"HTTP/1.1 " + status), said
        assert b'\r\n\r\n{"error":"expected ' in said


def test_a_client_that_hangs_up_leaves_nothing(service: Service) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        wait_until(lambda: service.classifier.admission.in_flight == 1, "the body has begun")
    wait_until(lambda: service.classifier.admission.in_flight == 0, "it is forgotten")


def test_requests_are_counted_by_their_route(service: Service, client: InferenceServerClient) -> None:
    client.infer("colours", [given("frames", clip_input())])
    client.get_server_metadata()
    client.get_model_repository_index()
    for route in ("/v2", "/v2/models/{name}/infer", "/v2/repository/index"):
        line = f'ttvideo_requests_total{{code="ok",route="{route}",status="200"}}'
        wait_until(partial(lambda line: line in service.get("/metrics").text, line), f"{route} is counted")

"""Models are loaded, exchanged and unloaded while requests come, and no request is lost."""

from __future__ import annotations

import gc
import hashlib
import json
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from service.engine.session import Session
from service.settings import Settings
from tests.service import onnx_models
from tests.service.conftest import PATIENCE_S, Service, running, wait_until
from tests.service.routes.test_problem import check_problem
from tests.service.routes.test_v2 import check_error, clip_input
from tests.tolerances import SERVED


def lay(folder: Path, version: str = "1", *, name: str = "mine", delay: int = 0, **about: Any) -> str:
    """A model of 2 frames of 8 x 8; its sha256."""
    made = onnx_models.manifest(name=name, version=version, **({"num_frames": 2, "height": 8, "width": 8} | about))
    path = onnx_models.save(folder, onnx_models.colours(made, delay=delay), made)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[tuple[Service, InferenceServerClient]]:
    settings = Settings(
        models=folder, default_model="mine", provider="cpu", decode_workers=1, model_control="explicit", **options
    )
    with running(settings) as service:
        host, port = service.address
        with InferenceServerClient(f"{host}:{port}") as client:
            yield service, client


def ask(service: Service, frames: np.ndarray, model: str = "mine", version: str | None = None) -> httpx.Response:
    tensor = {"name": "frames", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.ravel().tolist()}
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    return httpx.post(service.url + path, content=json.dumps({"inputs": [tensor]}), timeout=PATIENCE_S)


def answered_by(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["parameters"]["model_sha256"])


def states(client: InferenceServerClient) -> dict[str, tuple[str, str]]:
    index = client.get_model_repository_index()
    return {f"{e['name']}/{e['version']}": (e["state"], e["reason"]) for e in index if e["name"] != "moving_digits"}


@contextmanager
def load_on(ask_once: Callable[[int], httpx.Response], num_clients: int) -> Iterator[list[Any]]:
    """Clients that ask without a pause until the end of the block; what they were answered."""
    stop, answers = threading.Event(), []

    def client(number: int) -> None:
        while not stop.is_set():
            answers.append(ask_once(number))

    with ThreadPoolExecutor(num_clients) as threads:
        futures = [threads.submit(client, number) for number in range(num_clients)]
        try:
            wait_until(lambda: len(answers) >= num_clients, "the load is on")
            yield answers
        finally:
            stop.set()
        for future in futures:
            future.result()


@pytest.mark.slow
def test_twenty_exchanges_under_load_lose_no_request(tmp_path: Path, clips: dict[str, Path]) -> None:
    frames = clip_input(2, 3, height=8, width=8)
    temperatures = {lay(tmp_path): 1.0}
    with serving(tmp_path) as (service, client):
        sessions = [weakref.ref(service.classifier.repository.find("mine").session)]
        logits = np.reshape(ask(service, frames).json()["outputs"][0]["data"], (2, 4))

        def ask_once(number: int) -> httpx.Response:
            return service.post(clips["red"]) if number == 0 else ask(service, frames)

        with load_on(ask_once, 4) as answers:
            for i in range(20):
                sha256 = lay(tmp_path, temperature=2.0 + i)
                temperatures[sha256] = 2.0 + i
                client.load_model("mine")
                assert answered_by(ask(service, frames)) == sha256
                sessions.append(weakref.ref(service.classifier.repository.find("mine").session))
                enough = len(answers) + 2
                wait_until(partial(lambda number: len(answers) >= number, enough), "somebody is served by it")
        seen = set()
        for answer in answers:
            assert answer.status_code == 200, answer.text
            body = answer.json()
            if "outputs" not in body:
                seen.add(body["model"]["sha256"])
                continue
            seen.add(body["parameters"]["model_sha256"])
            powers = np.exp(logits / temperatures[body["parameters"]["model_sha256"]])
            expected = (powers / powers.sum(-1, keepdims=True)).ravel()
            np.testing.assert_allclose(body["outputs"][2]["data"], expected, atol=SERVED)
        assert seen <= set(temperatures)
        assert len(seen) > 10
        (counted,) = client.get_inference_statistics("mine")["model_stats"]
        assert counted["inference_stats"]["success"]["count"] >= len(answers) + 20
        assert counted["inference_stats"]["fail"]["count"] == 0
        wait_until(lambda: gc.collect() >= 0 and sum(ref() is not None for ref in sessions) == 1, "they are freed")
        lines = [line for line in service.get("/metrics").text.splitlines() if line.startswith("ttvideo_model_info{")]
        assert sorted(line.split('model="')[1].split('"')[0] for line in lines) == ["mine", "moving_digits"]


def test_a_broken_file_is_refused_and_the_old_one_serves_on(tmp_path: Path) -> None:
    frames = clip_input(1, 2, height=8, width=8)
    sha256 = lay(tmp_path)
    path = tmp_path / "mine/1/model.onnx"
    with serving(tmp_path) as (service, client):
        whole = path.read_bytes()
        stranger = onnx_models.manifest(name="mine", num_frames=2, height=8, width=8)
        for broken, why in (
            (b"not onnx", "ONNX Runtime cannot load it"),
            (whole[: len(whole) // 2], "ONNX Runtime cannot load it"),
            (
                onnx_models.model([], {}, stranger, 8, 8).SerializeToString(),
                "cannot load it",
            ),
            (
                onnx_models.colours(onnx_models.manifest(name="other", height=8, width=8)).SerializeToString(),
                "expected a manifest that says mine/1, as its folders do, got other/1",
            ),
        ):
            path.write_bytes(broken)
            with pytest.raises(InferenceServerException, match=why) as caught:
                client.load_model("mine")
            assert caught.value.status() == "422"
            state, reason = states(client)["mine/1"]
            assert state == "READY"
            assert why in reason
            assert why in service.get("/model", params={"model": "mine"}).json()["refused"]
            assert answered_by(ask(service, frames)) == sha256
        path.write_bytes(whole)
        client.load_model("mine")
        assert states(client) == {"mine/1": ("READY", "")}
        assert service.get("/model").json()["refused"] is None


def test_versions_come_and_go(tmp_path: Path, clips: dict[str, Path]) -> None:
    frames = clip_input(1, 2, height=8, width=8)
    first = lay(tmp_path, "9")
    with serving(tmp_path) as (service, client):
        later = lay(tmp_path, "10", temperature=2.0)
        assert states(client) == {"mine/9": ("READY", ""), "mine/10": ("UNAVAILABLE", "not loaded")}
        assert client.get_model_repository_index()[-1]["name"] == "moving_digits"
        client.load_model("mine")
        assert answered_by(ask(service, frames)) == later
        assert answered_by(ask(service, frames, version="9")) == first
        assert service.post(clips["red"]).json()["model"]["version"] == "10"
        assert service.post(clips["red"], params={"version": "9"}).json()["model"]["version"] == "9"
        shown = {m["version"]: m["default"] for m in service.get("/models").json()["models"] if m["name"] == "mine"}
        assert shown == {"9": False, "10": True}

        (tmp_path / "mine/11").mkdir()
        (tmp_path / "mine/11/model.onnx").write_bytes(b"half")
        with pytest.raises(InferenceServerException, match=r"mine/11/model\.onnx: ONNX Runtime cannot load it"):
            client.load_model("mine")
        assert answered_by(ask(service, frames)) == later
        problem = check_problem(service.post(clips["red"], params={"version": "11"}), 404, "unknown_model")
        assert "mine/11 is not served: " in problem["detail"]
        assert "cannot load it" in problem["detail"]
        (absent,) = service.get("/models").json()["absent"]
        assert (absent["name"], absent["version"], absent["state"]) == ("mine", "11", "UNAVAILABLE")
        assert not client.is_model_ready("mine", "11")

        for version in ("10", "11"):
            (tmp_path / f"mine/{version}/model.onnx").unlink()
        client.load_model("mine")
        assert answered_by(ask(service, frames)) == first
        wait_until(lambda: states(client)["mine/10"] == ("UNAVAILABLE", "its file is gone"), "10 is let go of")


def test_unloading_lets_requests_under_way_finish(tmp_path: Path) -> None:
    frames = clip_input(1, 2, height=8, width=8)
    sha256 = lay(tmp_path, delay=60)
    with serving(tmp_path) as (service, client):
        model = service.classifier.repository.find("mine")
        session = weakref.ref(model.session)
        with ThreadPoolExecutor(3) as threads:
            under_way = [threads.submit(ask, service, frames) for _ in range(3)]
            wait_until(lambda: service.classifier.admission.in_flight == 3, "they are under way")
            client.unload_model("mine")
            gone = ask(service, frames)
            assert gone.status_code == 404
            assert "got mine; mine/1 is not served: unloaded" in gone.json()["error"]
            assert states(client)["mine/1"][0] in ("UNLOADING", "UNAVAILABLE")
            assert [answered_by(future.result()) for future in under_way] == [sha256] * 3
        del model
        wait_until(lambda: gc.collect() >= 0 and session() is None, "the session is freed")
        assert states(client)["mine/1"] == ("UNAVAILABLE", "unloaded")
        assert client.get_model_repository_index() != []
        assert service.get("/readyz").status_code == 200
        check_problem(service.get("/model"), 404, "unknown_model")
        assert [m["name"] for m in service.get("/models").json()["models"]] == ["moving_digits"]
        client.load_model("mine")
        assert answered_by(ask(service, frames)) == sha256


def test_two_models_in_turn(tmp_path: Path, clips: dict[str, Path]) -> None:
    one = lay(tmp_path)
    two = lay(tmp_path, name="yours", num_frames=3, height=16, width=8, task="multi_label")
    with serving(tmp_path) as (service, client):

        def ask_once(number: int) -> httpx.Response:
            if number == 0:
                return ask(service, clip_input(1, 2, height=8, width=8))
            return service.post(clips["green"], params={"model": "yours"})

        with load_on(ask_once, 2) as answers:
            for _ in range(3):
                client.unload_model("moving_digits")
                client.load_model("moving_digits")
        for answer in answers:
            assert answer.status_code == 200
            body = answer.json()
            assert (
                (body["parameters"]["model_sha256"] == one) if "outputs" in body else (body["model"]["sha256"] == two)
            )


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    lay(tmp_path)
    with serving(tmp_path) as (service, client):
        for name in ("yours", "..", "mine%2f1"):
            with pytest.raises(
                InferenceServerException,
                match=r"expected .*/VERSION/model.onnx in the folders .*, found none|Not",
            ):
                client.load_model(name)
        with pytest.raises(InferenceServerException, match=r"expected one of .*; got yours"):
            client.unload_model("yours")
        for config, files, said in (
            ('{"max_batch_size": 4}', None, "max_batch_size: Extra inputs are not permitted"),
            ('{"name": "yours"}', None, "config: name: expected mine, got"),
            ("{", None, "Invalid JSON"),
            ("{}", {"file:1/model.py": b""}, r"expected config and file:VERSION/model\.onnx, got file:1/model\.py"),
            ("{}", {"file:../1/model.onnx": b""}, "expected config and file:"),
            ("{}", {"file:1/model.onnx": b"half"}, r"mine/1/model\.onnx: ONNX Runtime cannot load it"),
        ):
            with pytest.raises(InferenceServerException, match=said):
                client.load_model("mine", config=config, files=files)
        url = f"{service.url}/v2/repository/models/mine/load"
        no_base64 = httpx.post(url, json={"parameters": {"file:1/model.onnx": "a-b"}})
        assert "file:1/model.onnx: expected base64" in check_error(no_base64, 400)
        lay(tmp_path, "2", num_frames=64, height=480, width=640)
        with pytest.raises(
            InferenceServerException, match=r"expected clips of at most 33554432 bytes, .* got 58982400"
        ):
            client.load_model("mine")
        assert client.is_model_ready("mine", "1")


def test_a_load_is_made_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file takes its time to load, others are answered; a second load waits for the first."""
    frames = clip_input(1, 2, height=8, width=8)
    first = lay(tmp_path)
    with serving(tmp_path) as (service, client):
        entered, go_on, load = threading.Event(), threading.Event(), Session._load

        def slow(*arguments: Any) -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            load(*arguments)

        monkeypatch.setattr(Session, "_load", slow)
        second = lay(tmp_path, temperature=3.0)
        lay(tmp_path, name="yours")
        url = f"{service.url}/v2/repository/models"
        with ThreadPoolExecutor(2) as threads:
            loading = [threads.submit(httpx.post, f"{url}/mine/load", timeout=PATIENCE_S)]
            assert entered.wait(PATIENCE_S)
            assert answered_by(ask(service, frames)) == first
            loading.append(threads.submit(httpx.post, f"{url}/yours/load", timeout=PATIENCE_S))
            assert states(client)["mine/1"] == ("READY", "")
            go_on.set()
            assert [future.result().status_code for future in loading] == [200, 200]
        assert answered_by(ask(service, frames)) == second
        assert client.is_model_ready("yours")


def test_a_file_may_be_sent_and_the_next_load_undoes_it(tmp_path: Path) -> None:
    frames = clip_input(1, 2, height=8, width=8)
    lies_there = lay(tmp_path)
    elsewhere = {name: lay(tmp_path / "elsewhere", temperature=5.0, name=name) for name in ("mine", "new")}
    with serving(tmp_path) as (service, client):
        for name, sha256 in elsewhere.items():
            model = (tmp_path / f"elsewhere/{name}/1/model.onnx").read_bytes()
            client.load_model(name, config="{}", files={"file:1/model.onnx": model})
            assert answered_by(ask(service, frames, name)) == sha256
        client.load_model("mine")
        assert answered_by(ask(service, frames)) == lies_there
        client.unload_model("new")
        assert not client.is_model_ready("new")


def test_whoever_hangs_up_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request holds the model; those behind it leave before their turn."""
    lay(tmp_path)
    frames = clip_input(2, 2, height=8, width=8)
    tensor = {"name": "frames", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = b"POST /v2/models/mine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(tmp_path, max_batch=2) as (service, client), ThreadPoolExecutor(1) as threads:
        model = service.classifier.repository.find("mine")
        entered, go_on, run = threading.Event(), threading.Event(), model.session.run

        def held(*batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            return run(*batch)

        monkeypatch.setattr(model._line, "_run", held)
        first = threads.submit(ask, service, frames)
        assert entered.wait(PATIENCE_S)
        for _ in range(5):
            with socket.create_connection(service.address) as connection:
                connection.sendall(head + body)
                wait_until(lambda: model.depth >= 2, "its clips are waiting")
            wait_until(lambda: service.classifier.admission.in_flight == 1, "they are forgotten")
        go_on.set()
        answered_by(first.result())
        (counted,) = client.get_inference_statistics("mine")["model_stats"]
        assert counted["inference_count"] == 2

"""Several files in one request: each has an answer or a problem of its own, and the request its bounds."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.routes import problem
from service.routes.upload import harmless
from service.settings import Settings
from tests.service.conftest import PATIENCE_S, Service, running, wait_until
from tests.service.routes.test_problem import check_problem
from tests.service.routes.test_upload import FORM, LIMIT, form, talk


def several(*files: Path | bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (file.name, file.read_bytes()) if isinstance(file, Path) else ("data", file)) for file in files]


def test_each_has_the_answer_that_it_has_alone(service: Service, clips: dict[str, Path]) -> None:
    paths = [clips[colour] for colour in ("red", "blue", "green", "red", "blue")]
    results = service.post(files=several(*paths), params={"top_k": 2}).json()["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
    for path, result in zip(paths, results, strict=True):
        alone = service.post(path, params={"top_k": 2}).json()
        del alone["times_ms"], result["answer"]["times_ms"]
        assert result["answer"] == alone
        assert result["problem"] is None
        assert result["file_name"] == path.name


def test_each_has_the_timeline_that_it_has_alone(service: Service, clips: dict[str, Path]) -> None:
    results = service.post(files=several(clips["red"], clips["green"]), params={"window_s": 0.2}).json()["results"]
    for colour, result in zip(("red", "green"), results, strict=True):
        assert [window["label"] for window in result["answer"]["windows"]] == [colour] * 4


def test_one_that_fails_costs_the_others_nothing(service: Service, clips: dict[str, Path]) -> None:
    broken = clips["red"].read_bytes()[:700]
    response = service.post(files=several(clips["red"], broken, b"", b"text", clips["blue"]))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["answer"] and result["answer"]["label"] for result in results] == ["red", None, None, None, "blue"]
    problems = [result["problem"] for result in results]
    assert [found and (found["status"], found["code"]) for found in problems] == [
        None,
        (415, "not_a_video"),
        (400, "empty_upload"),
        (415, "not_a_video"),
        None,
    ]
    for found in filter(None, problems):
        assert found["request_id"] == response.headers["x-request-id"]
    assert service.classifier.pool.num_replaced == 0
    assert 'ttvideo_files_total{code="empty_upload"} 1.0' in service.get("/metrics").text


def test_all_empty_is_the_request_s_fault(service: Service) -> None:
    check_problem(service.post(files=several(b"", b"")), 400, "empty_upload")


def test_too_many_files(service: Service) -> None:
    body = check_problem(service.post(files=several(*[b"x"] * 17)), 422, "too_many_files")
    assert body["detail"] == "expected at most 16 multipart fields 'file', got more"
    assert len(service.post(files=several(*[b"x"] * 16)).json()["results"]) == 16


def test_all_together_have_the_bound_of_one(service: Service) -> None:
    half = b"x" * (LIMIT // 2)
    check_problem(service.post(files=several(half, half, b"x")), 413, "upload_too_large")
    assert len(service.post(files=several(half, half)).json()["results"]) == 2


def test_a_broken_form_is_one_problem(service: Service, clips: dict[str, Path]) -> None:
    data = clips["red"].read_bytes()
    broken = form(("file", data), ("file", data), end=False)
    check_problem(service.post(content=broken, headers=FORM), 400, "malformed_upload")


HOSTILE = {
    "../../etc/passwd": "passwd",
    "C:\\\\clips\\\\a.mp4": "a.mp4",
    "list.m3u8": "list.m3u8",
    "concat:a|b": "concat:a|b",
    "\u202egnp.4pm": "gnp.4pm",
    "a\x07\x1b[31m.mp4": "a[31m.mp4",
    "<script>alert(1)</script>": "script>",
    "名前.mp4": "名前.mp4",
    "a" * 300: "a" * 200,
    "": "",
}


def test_any_file_name_is_harmless(service: Service, clips: dict[str, Path]) -> None:
    data = clips["red"].read_bytes()
    for name, told in HOSTILE.items():
        assert harmless(name) == told
        part = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
        body = 2 * (part % (name.encode(), data)) + b"--edge--\r\n"
        for result in service.post(content=body, headers=FORM).json()["results"]:
            assert result["answer"]["label"] == "red"
            assert result["file_name"].isprintable()
            assert "/" not in result["file_name"]
    unnamed = b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\n%b\r\n' % data
    results = service.post(content=2 * unnamed + b"--edge--\r\n", headers=FORM).json()["results"]
    assert [result["file_name"] for result in results] == [None, None]


# ---- beside other requests


@pytest.fixture
def small(models: Path, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        models=models, default_model="colours/1", provider="cpu", decode_workers=1, max_queue=6, spool_dir=tmp_path
    )
    with running(settings) as service:
        yield service
    assert service.classifier.spool.used_bytes == 0


def test_each_file_takes_a_place(small: Service, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    os.kill(small.classifier.pool.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        four = threads.submit(small.post, files=several(*[clips["red"]] * 4))
        wait_until(lambda: small.classifier.admission.in_flight == 4, "four places are taken")
        wait_until(lambda: small.classifier.pool.num_idle == 0, "the first is in the decoder")
        refused = check_problem(small.post(files=several(*[b"x"] * 3)), 503, "busy")
        assert refused["detail"] == "6 clips are under way, the limit"
        assert small.classifier.admission.in_flight == 4
        os.kill(small.classifier.pool.pids[0], signal.SIGCONT)
        assert [result["answer"]["label"] for result in four.result().json()["results"]] == ["red"] * 4
    wait_until(lambda: small.classifier.admission.in_flight == 0, "all places are free")


def test_others_are_not_kept_waiting_by_all_of_them(small: Service, clips: dict[str, Path]) -> None:
    """Of five files one is in the decoder and one in the line, so whoever comes next is third."""
    os.kill(small.classifier.pool.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(2) as threads:
        five = threads.submit(small.post, files=several(*[clips["red"]] * 5))
        wait_until(lambda: small.classifier.pool.num_waiting == 1, "one is in the line")
        one = threads.submit(small.post, clips["blue"])
        wait_until(lambda: small.classifier.pool.num_waiting == 2, "the other is behind it")
        os.kill(small.classifier.pool.pids[0], signal.SIGCONT)
        queue_ms = [result["answer"]["times_ms"]["queue"] for result in five.result().json()["results"]]
        assert one.result().json()["times_ms"]["queue"] < max(queue_ms)
        assert queue_ms == sorted(queue_ms)


def test_a_client_that_hangs_up_drops_all(small: Service, clips: dict[str, Path]) -> None:
    os.kill(small.classifier.pool.pids[0], signal.SIGSTOP)
    body = form(*[("file", clips["red"].read_bytes())] * 5)
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(small.address, timeout=PATIENCE_S) as connection:
        connection.sendall(head % (FORM["content-type"].encode(), len(body)) + body)
        wait_until(lambda: small.classifier.pool.num_waiting == 1, "one is decoded and one waits")
    wait_until(lambda: small.classifier.admission.in_flight == 0, "the work has stopped")
    assert small.classifier.pool.num_waiting == 0
    assert small.post(clips["red"]).status_code == 200
    assert small.classifier.pool.num_replaced == 1


# ---- the spool


def test_the_spool_is_bounded(models: Path, clips: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    settings = Settings(
        models=models,
        default_model="colours/1",
        provider="cpu",
        decode_workers=1,
        spool_dir=tmp_path,
        max_spool_bytes=100_000,
    )
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    data = clips["red"].read_bytes()
    with running(settings) as service, socket.create_connection(service.address, timeout=PATIENCE_S) as slow:
        slow.sendall(head % 99_000 + bytes(98_900))
        spool = service.classifier.spool
        wait_until(lambda: spool.used_bytes == 98_900, "the first is on the disk")
        assert list(tmp_path.iterdir()) == [], "it has no name"
        said = talk(service.address, head % len(data))
        assert said.startswith(b"HTTP/1.1 507 ")
        assert b'"code":"no_room"' in said
        assert b"98900 of 100000 bytes are taken" in said
        chunked = httpx.post(f"{service.url}/classify", content=iter([data]), timeout=PATIENCE_S)
        check_problem(chunked, 507, "no_room")
        assert spool.used_bytes == 98_900
        slow.close()
        wait_until(lambda: spool.used_bytes == 0, "its room is free again")
        assert service.post(clips["red"]).status_code == 200


def test_a_drip_is_ended(models: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    settings = Settings(
        models=models, provider="cpu", decode_workers=1, upload_timeout_s=0.4, min_upload_rate=1000, max_queue=1
    )
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with running(settings) as service, socket.create_connection(service.address, timeout=0.1) as slow:
        slow.sendall(head)
        said = b""
        for _ in range(100):
            try:
                said = slow.recv(65536)
            except TimeoutError:
                slow.sendall(b"x")
            else:
                break
        with contextlib.suppress(TimeoutError):
            while more := slow.recv(65536):  # the head may come before the rest
                said += more
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"expected 1000 bytes of the body a second, got " in said
        assert service.post(clips["red"]).status_code == 200

"""A request in trouble costs itself and nobody else."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.routes import problem
from service.settings import Settings
from tests.service.conftest import PATIENCE_S, Service, running, wait_until
from tests.service.routes.test_problem import check_problem
from tests.service.routes.test_upload import talk


@pytest.fixture
def small(models: Path, tmp_path: Path) -> Iterator[Service]:
    """One decoder, and a short deadline only where a test shortens it."""
    spool = tmp_path / "spool"
    spool.mkdir()
    settings = Settings(
        models=models,
        default_model="colours/1",
        provider="cpu",
        decode_workers=1,
        deadline_s=PATIENCE_S,
        spool_dir=spool,
    )
    with running(settings) as service:
        yield service
    assert list(spool.iterdir()) == []


@contextmanager
def posted(service: Service, path: Path, times: int) -> Iterator[list[Future[httpx.Response]]]:
    """So many requests at once, the first of them in the hands of a decoder that stands still."""
    os.kill(service.classifier.pool.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(times) as threads:
        futures = [threads.submit(service.post, path)]
        wait_until(lambda: service.classifier.pool.num_idle == 0, "the first request is in the decoder")
        futures += [threads.submit(service.post, path) for _ in range(times - 1)]
        wait_until(lambda: service.classifier.pool.num_waiting == times - 1, "the others wait")
        yield futures


def test_a_killed_decoder_costs_one_request(small: Service, clips: dict[str, Path]) -> None:
    with posted(small, clips["red"], 4) as futures:
        os.kill(small.classifier.pool.pids[0], signal.SIGKILL)
        check_problem(futures[0].result(), 422, "decoder_crashed")
        assert [future.result().status_code for future in futures[1:]] == [200, 200, 200]
    assert small.get("/readyz").status_code == 200
    assert "ttvideo_decode_workers_replaced_total 1.0" in small.get("/metrics").text
    assert "ttvideo_decode_workers 1.0" in small.get("/metrics").text


def test_a_hanging_decoder_costs_one_request(
    small: Service, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = small.classifier.settings.model_copy(update={"deadline_s": 0.3})
    with monkeypatch.context() as patch:
        patch.setattr(small.classifier, "settings", hurried)
        with posted(small, clips["red"], 1) as futures:
            pass
        check_problem(futures[0].result(), 504, "deadline_exceeded")
    assert small.post(clips["red"]).status_code == 200
    assert small.classifier.pool.num_replaced == 1


def test_a_client_that_hangs_up_stops_the_work(small: Service, clips: dict[str, Path]) -> None:
    data = clips["red"].read_bytes()
    os.kill(small.classifier.pool.pids[0], signal.SIGSTOP)
    with socket.create_connection(small.address, timeout=PATIENCE_S) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        wait_until(lambda: small.classifier.pool.num_idle == 0, "the request is in the decoder")
    wait_until(lambda: small.classifier.admission.in_flight == 0, "the work has stopped")
    assert small.post(clips["red"]).status_code == 200
    assert small.classifier.pool.num_replaced == 1
    assert 'ttvideo_requests_total{code="client_gone",route="/classify",status="499"} 1.0' in small.get("/metrics").text


def test_a_client_that_hangs_up_while_uploading(small: Service, clips: dict[str, Path]) -> None:
    with socket.create_connection(small.address, timeout=PATIENCE_S) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        wait_until(lambda: small.classifier.admission.in_flight == 1, "the upload has begun")
    wait_until(lambda: small.classifier.admission.in_flight == 0, "the upload has ended")
    assert small.post(clips["red"]).status_code == 200
    assert small.classifier.pool.num_replaced == 0


def test_an_upload_that_stands_still_gives_its_place_back(
    models: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    data = clips["red"].read_bytes()
    settings = Settings(models=models, default_model="colours/1", provider="cpu", decode_workers=1)
    hurried = settings.model_copy(update={"max_queue": 1, "upload_timeout_s": 0.3})
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n"
    form = b"Content-Type: multipart/form-data; boundary=edge\r\n"
    with running(hurried) as service:
        for kind, begun in ((b"", b"abc"), (form, b"--edge\r\n"), (b"", b"")):
            said = talk(service.address, head % (kind, 1000), begun)
            assert said.startswith(b"HTTP/1.1 408 "), said
            assert b'"code":"upload_timeout"' in said
            assert b"expected the next piece of the body within 0.3 s, got none" in said
            assert b"\r\nconnection: close" in said.lower()
            assert service.post(clips["red"]).status_code == 200
        # Slow is not still: every piece starts the wait anew.
        with socket.create_connection(service.address, timeout=PATIENCE_S) as slow:
            slow.sendall(head % (b"", len(data)))
            for start in range(0, len(data), len(data) // 4):
                time.sleep(0.15)
                slow.sendall(data[start : start + len(data) // 4])
            assert slow.recv(12) == b"HTTP/1.1 200"


def test_a_model_that_fails_is_a_500_that_says_little(
    small: Service, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a secret")

    for model in small.classifier.repository.models:
        monkeypatch.setattr(model._line, "_run", fail)
    body = check_problem(small.post(clips["red"]), 500, "internal_error")
    assert "secret" not in str(body)

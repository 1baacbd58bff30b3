"""Bodies that are too large, empty, broken, or not what they should be."""

from __future__ import annotations

import errno
import http.client
import io
import os
import socket
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import av
import httpx
import numpy as np
import pytest

from service import spool
from service.routes import problem
from service.video.probe import CONTAINERS
from tests.service.conftest import PATIENCE_S, Service, coloured_frames, running
from tests.service.routes.test_problem import check_problem
from ttmodels.data.encode import write_video

LIMIT = 2_000_000


def chunks(total: int, size: int = 65536) -> Iterator[bytes]:
    for start in range(0, total, size):
        yield b"x" * min(size, total - start)


def form(*fields: tuple[str, bytes], end: bool = True, boundary: str = "edge") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in fields
    ]
    return b"".join(parts) + (f"--{boundary}--\r\n".encode() if end else b"")


FORM = {"content-type": "multipart/form-data; boundary=edge"}


def talk(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send and read until the service closes the connection."""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        for piece in pieces:
            connection.sendall(piece)
        said = b""
        while piece := connection.recv(65536):
            said += piece
    return said


def test_nothing(service: Service) -> None:
    check_problem(service.post(), 400, "empty_upload")
    check_problem(service.post(content=b""), 400, "empty_upload")
    check_problem(service.post(files={"file": ("a.mp4", b"")}), 400, "empty_upload")
    check_problem(service.post(content=form(), headers=FORM), 400, "empty_upload")


def test_the_field_is_missing(service: Service, clips: dict[str, Path]) -> None:
    body = check_problem(service.post(files={"video": clips["red"].read_bytes()}), 400, "empty_upload")
    assert body["detail"] == "expected a multipart field 'file', got 'video'"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"no form at all", FORM["content-type"]),
        (form(("file", b"abc"), end=False), FORM["content-type"]),
        (form(("file", b"abc")), "multipart/form-data"),
        (form(("file", b"abc")), "multipart/form-data; boundary=" + 1000 * "x"),
        (b"--edge\r\n" + b"a" * 100_000, FORM["content-type"]),
    ],
)
def test_a_broken_form(service: Service, body: bytes, content_type: str) -> None:
    check_problem(service.post(content=body, headers={"content-type": content_type}), 400, "malformed_upload")


def test_too_large_by_its_own_word_is_refused_unread(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "LINGER_S", 0.05)
    said = talk(service.address, b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"upload_too_large"' in said


def test_too_large_without_a_word_is_refused_on_the_way(service: Service) -> None:
    """Chunked: the size is not known before."""
    body = check_problem(service.post(content=chunks(20 * LIMIT)), 413, "upload_too_large")
    assert body["detail"] == f"expected videos of at most {LIMIT} bytes, got more"


@pytest.mark.parametrize("size", [LIMIT + 1, 40 * LIMIT])
def test_a_client_that_sends_all_before_it_reads_gets_its_answer_too(service: Service, size: int) -> None:
    connection = http.client.HTTPConnection(*service.address, timeout=PATIENCE_S)
    connection.request("POST", "/classify", body=bytes(size))
    response = connection.getresponse()
    assert response.status == 413
    assert b'"code":"upload_too_large"' in response.read()
    connection.close()


@pytest.mark.parametrize("as_form", [False, True])
def test_a_full_disk(
    service: Service, as_form: bool, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there of the upload goes, and the next one is served as soon as there is room."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:500])

    def open_full(*arguments: object, **options: object) -> IO[bytes]:
        return Full(tmp_path / "full", "x+")

    video = clips["red"].read_bytes()
    body = {"files": {"file": video}} if as_form else {"content": video}
    with monkeypatch.context() as broken:
        broken.setattr(spool.tempfile, "TemporaryFile", open_full)
        problem = check_problem(service.post(**body), 507, "no_room")
    assert problem["detail"] == "expected room for the upload where uploads wait: No space left on device"
    assert service.classifier.spool.used_bytes == 0
    assert service.post(**body).status_code == 200


def test_too_large_in_a_form(service: Service) -> None:
    check_problem(service.post(files={"file": b"x" * (LIMIT + 1)}), 413, "upload_too_large")
    check_problem(service.post(files={"other": b"x" * (2 * LIMIT), "file": b"x"}), 413, "upload_too_large")


@pytest.mark.parametrize("fields", [[("a", b"")] * 5_000, [("a", b"x" * 100_000)]], ids=["many", "large"])
def test_other_fields_are_bounded(service: Service, fields: list[tuple[str, bytes]]) -> None:
    """What is known of them is kept until the end of the form."""
    beside = service.post(content=form(("file", b"x"), *fields), headers=FORM)
    assert "at most 65536 bytes" in check_problem(beside, 400, "malformed_upload")["detail"]
    check_problem(service.post(content=form(*fields), headers=FORM), 400, "empty_upload")


def test_the_limit_itself_is_allowed(service: Service) -> None:
    check_problem(service.post(content=b"x" * LIMIT), 415, "not_a_video")
    check_problem(service.post(files={"file": b"x" * LIMIT}), 415, "not_a_video")


def test_a_text_file(service: Service) -> None:
    body = check_problem(service.post(content=b"hello, world\n" * 100), 415, "not_a_video")
    assert "/" not in body["detail"], "the spool file's path is nobody's business"


def test_what_is_no_video_is_told_in_words(service: Service, clips: dict[str, Path], tmp_path: Path) -> None:
    """FFmpeg's own would be `Invalid argument` for a sound and `Invalid data` for the start of a video."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    names = ", ".join(CONTAINERS.values())
    assert {"mp4", "mkv", "ts", "y4m"} <= set(CONTAINERS.values())
    body = check_problem(service.post(tmp_path / "a.wav"), 415, "not_a_video")
    assert body["detail"] == f"expected a video ({names}), got something else"
    body = check_problem(service.post(content=clips["red"].read_bytes()[:1000]), 415, "not_a_video")
    assert body["detail"] == f"expected a video ({names}), got something else, or one that is incomplete or broken"


def test_what_curl_d_made_of_a_video_is_told_with_the_cure(service: Service, clips: dict[str, Path]) -> None:
    data = clips["red"].read_bytes()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    altered = data.replace(b"\0", b"").replace(b"\n", b"")
    body = check_problem(service.post(content=altered, headers=headers), 415, "not_a_video")
    assert body["detail"].endswith("; curl -d alters what it sends: use -F file=@FILE or --data-binary @FILE")
    assert service.post(content=data, headers=headers).status_code == 200


def test_a_playlist_opens_nothing(service: Service, clips: dict[str, Path]) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clips['red']}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{clips['red']}'\n".encode()
    for body in (playlist, concat):
        check_problem(service.post(files={"file": ("a.m3u8", body)}), 415, "not_a_video")


def test_sound_alone(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    body = check_problem(service.post(path), 422, "no_video_stream")
    assert "audio" in body["detail"]


def test_a_broken_tail_is_answered_for_what_is_there(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "whole.ts"
    write_video(path, coloured_frames((220, 20, 20), num_frames=100), options={"g": "10"})
    whole = service.post(path).json()
    tail = tmp_path / "tail.ts"
    tail.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    answer = service.post(tail).json()
    assert answer["label"] == whole["label"] == "red"
    assert 10 < answer["clip"]["num_frames"] < whole["clip"]["num_frames"]


def test_mutilated_files_get_an_answer_or_a_clean_error(service: Service, clips: dict[str, Path]) -> None:
    random = np.random.default_rng(0)
    for path in clips.values():
        for _ in range(15):
            data = np.frombuffer(path.read_bytes(), np.uint8).copy()
            data[random.integers(0, len(data), 1 + len(data) // 50)] ^= 0xFF
            data = data[: random.integers(1, len(data))]
            response = service.post(content=data.tobytes())
            assert response.status_code in (200, 415, 422), response.text
    assert service.classifier.pool.num_replaced == 0


def test_a_full_service_refuses_before_it_reads(service: Service, clips: dict[str, Path]) -> None:
    settings = service.classifier.settings.model_copy(update={"max_queue": 1, "decode_workers": 1})
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    data = clips["red"].read_bytes()
    with running(settings) as small, socket.create_connection(small.address, timeout=PATIENCE_S) as slow:
        slow.sendall(head % len(data) + data[:100])
        while not small.classifier.admission.in_flight:
            pass
        said = talk(small.address, head % 1000)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"busy"' in said
        assert b"\r\nretry-after: " in said.lower()
        slow.sendall(data[100:])
        assert slow.recv(12) == b"HTTP/1.1 200"
        slow.close()
        assert httpx.post(f"{small.url}/classify", content=data).status_code == 200

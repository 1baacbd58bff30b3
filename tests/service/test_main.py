"""`python -m service`, as a user meets it: real processes."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest
from onnx import numpy_helper

import service.doctor
from service import __version__, server
from service.__main__ import main
from service.server import listen
from service.settings import Settings
from tests.service import onnx_models
from tests.service.conftest import PATIENCE_S, coloured_frames, lives, wait_until
from tests.serving import served
from ttmodels.data.encode import write_video


def run(*arguments: str | Path, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def children(pid: int) -> set[int]:
    """Every process below this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child, *children(child)}
    return found


@pytest.fixture
def colours(models: Path) -> tuple[str | Path, ...]:
    return "--models", models, "--default-model", "colours/1", "--decode-workers", "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_says_how_and_ends_clean(
    colours: tuple[str | Path, ...], clips: dict[str, Path], number: signal.Signals
) -> None:
    with served(*colours) as (process, url, greeting):
        assert f"ttvideo serves colours/1 (default), colours/2, moving_digits/1, tags/1 on {url}\n" in greeting
        assert "provider: cpu" in greeting
        assert re.search(
            rf"try: curl -F file=@\S+counter_clockwise.mp4 '{url}/classify\?model=moving_digits'\n", greeting
        )
        with httpx.Client(base_url=url) as client:
            assert client.get("/readyz").status_code == 200
            response = client.post("/classify", files={"file": clips["green"].read_bytes()})
            assert response.json()["label"] == "green"
        below = children(process.pid)
        assert below
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        wait_until(lambda: not any(map(lives, below)), "no child is left")


POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Everything below this process stands still: decoders take what they are given and do not answer."""
    below = children(pid)
    for child in below:
        os.kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in filter(lives, below):
            os.kill(child, signal.SIGCONT)


def connected(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 0), timeout=PATIENCE_S)


def everything(connection: socket.socket) -> bytes:
    said = b""
    while piece := connection.recv(65536):
        said += piece
    return said


def test_sigterm_answers_what_was_uploaded_and_ends_what_was_not(
    colours: tuple[str | Path, ...], clips: dict[str, Path]
) -> None:
    data = clips["blue"].read_bytes()
    with served(*colours) as (process, url, _), connected(url) as whole, connected(url) as part:
        with stopped(process.pid):
            whole.sendall(POST % len(data) + data)
            part.sendall(POST % 100_000 + data[:100])
            wait_until(lambda: "requests_in_flight 2.0" in httpx.get(f"{url}/metrics").text, "both were accepted")
            wait_until(
                lambda: f"upload_bytes_total {float(len(data))}" in httpx.get(f"{url}/metrics").text, "one is in"
            )
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            said = everything(part)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b'"code":"not_ready"' in said
            assert httpx.get(f"{url}/readyz").status_code == 503
            assert httpx.post(f"{url}/classify", content=data).status_code == 503
            assert process.poll() is None
        said = everything(whole)
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b'"label":"blue"' in said
        assert process.wait(PATIENCE_S) == 0


def test_sigterm_waits_for_no_upload(colours: tuple[str | Path, ...]) -> None:
    with served("--deadline-s", "600", *colours) as (process, url, _), connected(url) as stalled:
        stalled.sendall(POST % 100_000 + b"abc")
        wait_until(lambda: "requests_in_flight 1.0" in httpx.get(f"{url}/metrics").text, "the upload was accepted")
        process.send_signal(signal.SIGTERM)
        said = everything(stalled)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"not_ready"' in said
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_second_ctrl_c_waits_for_nobody(colours: tuple[str | Path, ...], clips: dict[str, Path]) -> None:
    data = clips["blue"].read_bytes()
    with served("--deadline-s", "600", *colours) as (process, url, _), connected(url) as waiting:
        with stopped(process.pid):
            waiting.sendall(POST % len(data) + data)
            wait_until(lambda: f"upload_bytes_total {float(len(data))}" in httpx.get(f"{url}/metrics").text, "it is in")
            process.send_signal(signal.SIGINT)
            wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503, "the service is no longer ready")
            process.send_signal(signal.SIGINT)
            said = everything(waiting)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b'"code":"not_ready"' in said
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("own", [False, True])
def test_the_greeting_s_command_fits_the_model_that_it_asks(colours: tuple[str | Path, ...], own: bool) -> None:
    with served("--decode-workers", "1", *(colours if own else ())) as (_, url, greeting):
        *_, form, address = shlex.split(greeting.splitlines()[-1])
        assert address == f"{url}/classify{'?model=moving_digits' if own else ''}"
        sample = Path(form.removeprefix("file=@"))
        response = httpx.post(address, files={"file": sample.read_bytes()})
        assert response.json()["label"] == sample.stem
        if not own:
            assert f"ttvideo serves moving_digits/1 on {url}\n" in greeting


def test_children_end_with_a_parent_that_was_killed(colours: tuple[str | Path, ...]) -> None:
    with served(*colours) as (process, _, _):
        below = children(process.pid)
        process.kill()
        process.wait(PATIENCE_S)
        wait_until(lambda: not any(map(lives, below)), "no child is left")


def test_a_port_in_use_is_one_clear_line(colours: tuple[str | Path, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port), *colours)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"ttvideo: port {port} on 127.0.0.1 is in use; choose another with --port, or 0 for any that is free"
    ]


def test_bad_settings_are_one_clear_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--port", "99999"]) == 2
    assert "ttvideo: settings: port: Input should be less than or equal to 65535, got 99999" in capsys.readouterr().err
    monkeypatch.setenv("TTVIDEO_MAX_BATCH", "none")
    assert main([]) == 2
    assert "ttvideo: settings: max_batch: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate-burst", "5"], "rate_burst: expected rate_limit beside it, got 5"),
        (
            ["--cors-origins", "https://a.org/page"],
            "cors_origins.0: expected a site as https://example.org, without a path, or *, got 'https://a.org/page'",
        ),
    ],
)
def test_settings_that_do_not_fit_say_what_would(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert capsys.readouterr().err == f"ttvideo: settings: {said}\n"


def test_a_misspelt_variable_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TTVIDEO_MAX_QUEU", "8")
    monkeypatch.setenv("TTVIDEO_MAX_QUEUE", "8")
    monkeypatch.setattr(service.doctor, "doctor", lambda settings, as_json: settings.max_queue)
    assert main(["doctor"]) == 8
    assert [record.getMessage() for record in caplog.records] == [
        "TTVIDEO_MAX_QUEU in the environment is no setting of this service"
    ]


def test_doctor_takes_every_option_after_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(service.doctor, "doctor", lambda settings, as_json: seen.append(settings) or 0)
    given = ["--port", "9000", "--open-metrics", "--api-keys-file", "keys", "--log-level", "error"]
    assert main(["doctor", *given]) == main([*given, "doctor"]) == 0
    assert seen[0] == seen[1]
    assert (seen[0].port, seen[0].open_metrics, seen[0].api_keys_file) == (9000, True, Path("keys"))


def test_classify_answers_each_file(colours: tuple[str | Path, ...], clips: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    files = [clips["red"], bad, tmp_path / "none.mp4", clips["blue"]]
    done = run(*colours, "classify", *files, "--top-k", "2")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"{clips['red']}: red 0\.\d{{3}} \(\w+ 0\.\d{{3}}\)", lines[0])
    assert lines[1].startswith(f"{bad}: The upload is not a video")
    assert lines[2].startswith(f"{files[2]}: There is no such file")
    assert lines[3].startswith(f"{clips['blue']}: blue 0.")


def test_classify_tells_apart_which_of_several_labels_hold(clips: dict[str, Path], tmp_path: Path) -> None:
    about = onnx_models.manifest(name="strict", task="multi_label", labels=("red", "green", "blue"))
    graph = onnx_models.colours(about)
    (bias,) = (each for each in graph.graph.initializer if each.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([-4, -4, -40], np.float32), "bias"))
    onnx_models.save(tmp_path, graph, about)
    yellow = tmp_path / "yellow.mp4"
    write_video(yellow, coloured_frames((220, 220, 20)))
    done = run("--models", tmp_path, "classify", "--model", "strict", clips["red"], yellow, clips["blue"])
    one, two, none = done.stdout.splitlines()
    assert re.fullmatch(rf"{clips['red']}: red 0\.9\d+ \(green 0\.0\d+, blue 0\.000\)", one)
    assert re.fullmatch(rf"{yellow}: (red|green) 0\.9\d+, (red|green) 0\.9\d+ \(blue 0\.000\)", two)
    assert re.fullmatch(rf"{clips['blue']}: no label \(.* 0\.0\d+, .* 0\.0\d+, blue 0\.000\)", none)


def test_classify_as_json_gives_the_server_s_answer(colours: tuple[str | Path, ...], clips: dict[str, Path]) -> None:
    done = run("classify", *colours, "--json", clips["green"], clips["red"])
    assert done.returncode == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(clips["green"]), str(clips["red"])]
    with served(*colours) as (_, url, _):
        for answer in answers:
            by_http = httpx.post(f"{url}/classify", content=Path(answer["file"]).read_bytes()).json()
            del by_http["times_ms"], answer["classification"]["times_ms"]
            assert answer["classification"] == by_http


def test_classify_names_faults_as_the_server_does(colours: tuple[str | Path, ...], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    names = ["empty.mp4", "text.mp4", "pipe", "", "none.mp4"]
    done = run("classify", *colours, "--json", *(tmp_path / name for name in names))
    assert done.returncode == 1
    faults = {Path(said["file"]).name: said["error"] for said in map(json.loads, done.stdout.splitlines())}
    with served(*colours) as (_, url, _):
        for name in names[:2]:
            by_http = httpx.post(f"{url}/classify", content=(tmp_path / name).read_bytes()).json()
            for fact in ("type", "title", "status", "code"):
                assert faults[name][fact] == by_http[fact]
    details = [fault["detail"] for fault in faults.values()]
    assert details[2:] == [
        "expected a file, found not a regular file",
        "expected a file, found a folder",
        "expected a file, found none",
    ]


def test_classify_reads_the_standard_input(colours: tuple[str | Path, ...], clips: dict[str, Path]) -> None:
    with clips["green"].open("rb") as stdin:
        done = run("classify", *colours, "-", clips["red"], stdin=stdin)
    assert [line.split(" 0.")[0] for line in done.stdout.splitlines()] == ["-: green", f"{clips['red']}: red"]
    assert done.returncode == 0
    done = run("classify", *colours, "--spool-dir", "/nowhere", "-", clips["red"])
    assert done.returncode == 2
    assert "ttvideo: expected a folder for uploads that can be written at /nowhere: No such file" in done.stderr


def test_classify_says_warnings_beside_the_answers(colours: tuple[str | Path, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, coloured_frames((220, 20, 20), num_frames=60), codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    done = run("classify", *colours, path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert f"{path}: warning: " in done.stderr


def test_classify_prints_a_timeline(colours: tuple[str | Path, ...], clips: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    with clips["green"].open("rb") as stdin:
        done = run(*colours, "classify", "--window-s", "0.3", clips["red"], bad, "-", stdin=stdin)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"{clips['red']}: 0.00 to 0.80 s: red 0\.\d{{3}}", lines[0])
    assert lines[1].startswith(f"{bad}: The upload is not a video")
    assert re.fullmatch(r"-: 0.00 to 0.80 s: green 0\.\d{3}", lines[2])
    done = run(*colours, "classify", "--window-s", "0.4", "--stride-s", "0.2", "--json", clips["red"])
    (said,) = map(json.loads, done.stdout.splitlines())
    with served(*colours) as (_, url, _):
        params = {"window_s": 0.4, "stride_s": 0.2}
        by_http = httpx.post(f"{url}/classify", content=clips["red"].read_bytes(), params=params).json()
    del by_http["times_ms"], said["timeline"]["times_ms"]
    assert said == {"file": str(clips["red"]), "timeline": by_http}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--window-s", "-1"), "window_s: Input should be greater than or equal to 0.01, got -1.0"),
        (("--window-s", "1", "--stride-s", "2"), "stride_s: expected at most window_s, 1, got 2"),
        (("--stride-s", "2"), "stride_s: expected window_s beside it, got 2 alone"),
    ],
)
def test_classify_refuses_windows_that_cannot_be(
    options: tuple[str, ...], said: str, colours: tuple[str | Path, ...], clips: dict[str, Path]
) -> None:
    done = run(*colours, "classify", *options, clips["red"])
    assert done.returncode == 2
    assert said in done.stderr


def test_a_service_that_is_killed_leaves_no_upload_behind(
    colours: tuple[str | Path, ...], clips: dict[str, Path], tmp_path: Path
) -> None:
    data = clips["blue"].read_bytes()
    with served("--spool-dir", tmp_path, *colours) as (process, url, _), connected(url) as part:
        part.sendall(POST % 100_000 + data)
        wait_until(lambda: f"spool_bytes {float(len(data))}" in httpx.get(f"{url}/metrics").text, "it is on the disk")
        process.kill()
        process.wait(PATIENCE_S)
    assert list(tmp_path.iterdir()) == []


def test_classify_ends_quietly_where_nobody_reads_on(colours: tuple[str | Path, ...], clips: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "service", "classify", *map(str, colours), *[str(clips["red"])] * 40]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert ": red " in process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ttvideo {__version__}\n"


def test_every_setting_has_its_option_and_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "TTVIDEO_API_KEYS" in said, "no option: everybody on a machine sees those of a process"
    for name in Settings.model_fields.keys() - {"api_keys"}:
        assert f"--{name.replace('_', '-')} " in said
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    assert '"classification": what the server answers' in " ".join(capsys.readouterr().out.split())


def test_classify_with_an_unknown_model_starts_nothing(colours: tuple[str | Path, ...], clips: dict[str, Path]) -> None:
    done = run("classify", *colours, "--model", "m", clips["red"])
    assert done.returncode == 2
    assert "ttvideo: expected one of colours/1, colours/2, moving_digits/1, tags/1; got m" in done.stderr


def test_help_needs_nothing_heavy() -> None:
    code = "import sys; from service.options import parser; parser(); print('onnxruntime' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"


def test_onnxruntime_reports_nothing_to_its_makers() -> None:
    """It reads the variable when it is loaded."""
    code = "import os, sys, service; print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    surroundings = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=surroundings)
    assert done.stdout.split() == ["False", "1"]


def test_there_may_be_as_many_connections_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        server.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_answers_are_not_held_back() -> None:
    """Without it a keep-alive client waits 40 ms for the end of every answer."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_who_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, so also where only what is unread keeps a connection."""
    monkeypatch.setattr(server, "UNREAD_S", 1)
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted, pytest.raises(TimeoutError):
            accepted.sendall(bytes(100_000_000))

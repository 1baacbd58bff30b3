"""The log of a real service: a line for each request, in both forms, and none that is something else."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.logs import JsonFormatter, TextFormatter
from tests.serving import served


def ask(url: str, clip: Path, key: str) -> None:
    headers = {"X-API-Key": key, "X-Request-ID": "mine"}
    files = {"file": ("holiday-in-secret.mp4", clip.read_bytes())}
    assert httpx.post(f"{url}/classify", files=files, headers=headers, timeout=60).status_code == 200
    assert httpx.get(f"{url}/model?model=secret", headers=headers).status_code == 404
    assert httpx.get(f"{url}/secret", headers=headers | {"X-API-Key": "secret"}).status_code == 401
    with pytest.raises(InvalidStatus, match="401"), connect(url.replace("http", "ws") + "/stream?secret"):
        pytest.fail("it was let in")


def run(tmp_path: Path, clip: Path, *arguments: str) -> list[str]:
    """All that the service wrote."""
    keys = tmp_path / "keys"
    keys.write_text("alice:the-secret-key-of-alice\n")
    # Both streams in one, as a container's log has them.
    with served("--api-keys-file", keys, *arguments, stderr=subprocess.STDOUT) as (process, url, greeting):
        ask(url, clip, "the-secret-key-of-alice")
        process.send_signal(signal.SIGTERM)
        text = greeting + process.communicate(timeout=60)[0]
        assert process.returncode == 0
    assert "secret" not in text, "names of files and models that nobody knows, paths and keys are the client's"
    return text.splitlines()


def test_lines_for_people(tmp_path: Path, clips: dict[str, Path]) -> None:
    lines = [line for line in run(tmp_path, clips["red"]) if " service.access: " in line]
    assert len(lines) == 4
    said = [line.split(" service.access: ")[1] for line in lines]
    stages = r"upload=[\d.]+ queue=[\d.]+ decode=[\d.]+ infer=[\d.]+"
    model = r"key=alice model=moving_digits/1 provider=cpu"
    assert re.fullmatch(rf"mine POST /classify 200 ok [\d.]+ ms {model} {stages}", said[0])
    assert re.fullmatch(r"mine GET /model 404 unknown_model [\d.]+ ms key=alice", said[1])
    assert re.fullmatch(r"mine GET unmatched 401 unauthorized [\d.]+ ms", said[2])


def test_lines_of_json(tmp_path: Path, clips: dict[str, Path]) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in run(tmp_path, clips["red"], "--log-format", "json")]
    for line in lines:
        assert line.keys() >= {"time", "level", "logger", "message"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    of_requests = [line for line in lines if line["logger"] == "service.access"]
    assert [line["request_id"] for line in of_requests[:3]] == ["mine"] * 3
    assert [of_requests[3][name] for name in ("method", "status", "code")] == ["WEBSOCKET", 401, "unauthorized"]
    assert "error" not in {line["level"] for line in lines}
    first = of_requests[0]
    told = {name: first[name] for name in ("method", "route", "status", "code", "key", "model", "provider")}
    assert told == {
        "method": "POST",
        "route": "/classify",
        "status": 200,
        "code": "ok",
        "key": "alice",
        "model": "moving_digits/1",
        "provider": "cpu",
    }
    assert first["stages_ms"].keys() == {"upload", "queue", "decode", "infer"}
    assert sum(first["stages_ms"].values()) <= first["ms"] + 1
    assert not [line for line in lines if "request_id" in line and line["logger"] != "service.access"]


def test_a_start_that_fails_says_so_in_the_same_form() -> None:
    command = [sys.executable, "-m", "service", "--log-format", "json", "--models", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["level"], last["logger"]) == ("critical", "service")
    assert "expected a folder of models" in last["message"]


def test_what_is_part_of_a_message_begins_no_line_of_its_own() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "got %s", ("a\n2026-11-29 forged\r\x1b[2J",), None)
    assert TextFormatter().format(record).endswith(" INFO x: got a\n    2026-11-29 forged\\x0d\\x1b[2J")
    assert len(JsonFormatter().format(record).splitlines()) == 1

"""What `python -m service doctor` finds, on this machine and on one with faults."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import checks
from service import doctor as module
from service.__main__ import main
from service.doctor import CHECKS, Finding, doctor, examine
from service.engine import provider
from service.settings import Settings
from tests.service.conftest import lives

SECRET = "a-secret-key-of-alice"


@pytest.fixture(autouse=True)
def no_decoder_was_started() -> None:
    """As in the process that the command has for itself, whose children need not share an older one's server."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def found(settings: Settings, *names: str, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What these checks find."""
    monkeypatch.setattr(module, "CHECKS", {name: CHECKS[name] for name in names})
    return list(examine(settings))


def faults(findings: list[Finding]) -> str:
    return "\n".join(finding.detail for finding in findings if finding.status == "fault")


def test_all_is_well_here(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTVIDEO_API_KEYS", f"alice:{SECRET}")
    assert main(["--port", "0", "doctor", "--models", str(models), "--default-model", "tags"]) == 0
    said = capsys.readouterr().out
    assert [name for name in CHECKS if f" {name}: " not in said] == []
    assert "ok    models: colours/2 runs on cpu: " in said
    assert "ok    models: tags answers by default, in its latest version" in said
    assert "API keys of alice" in said
    assert said.endswith("can serve as configured\n")
    assert SECRET not in said


def test_as_json(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTVIDEO_API_KEYS", f"alice:{SECRET}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "doctor", "--json", "--models", str(models)]) == 1
    text = capsys.readouterr().out
    assert SECRET not in text
    said: dict[str, Any] = json.loads(text)
    assert said.keys() == {"version", "usable", "findings", "settings"}
    assert said["usable"] is False
    wrong = [finding for finding in said["findings"] if finding["status"] == "fault"]
    assert [finding["check"] for finding in wrong] == ["port"]
    assert f"port {port} on 127.0.0.1 is in use" in wrong[0]["detail"]
    assert said["settings"]["models"] == str(models)
    assert {finding["check"] for finding in said["findings"]} == set(CHECKS)


def test_a_missing_library_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(device_id: int) -> str:
        return f"libcudnn.so.9 cannot be loaded; {provider.INSTALL}"

    monkeypatch.setattr(provider, "cuda_fault", fault)
    (finding,) = found(Settings(provider="auto"), "cuda", monkeypatch=monkeypatch)
    assert finding.status == "note", "the CPU will do"
    for wanting in (Settings(provider="cuda"), Settings(decode_device="cuda")):
        (finding,) = found(wanting, "cuda", monkeypatch=monkeypatch)
        assert finding.status == "fault"
        assert "libcudnn.so.9 cannot be loaded; pip install" in finding.detail


def test_two_builds_of_onnxruntime_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    findings = found(Settings(), "onnxruntime", monkeypatch=monkeypatch)
    assert "onnxruntime and onnxruntime-gpu are both installed" in faults(findings)


def test_every_file_of_the_models_is_judged(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colours").symlink_to(models / "colours")
    broken = tmp_path / "broken/1/model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_text("not onnx")
    (tmp_path / "astray.onnx").touch()
    findings = found(Settings(models=tmp_path, default_model="colours"), "models", monkeypatch=monkeypatch)
    assert faults(findings).startswith("broken/1 is refused: ")
    assert [f.detail for f in findings if f.status == "note"] == [
        f"{tmp_path}/astray.onnx is not served: expected NAME/VERSION/model.onnx under {tmp_path}"
    ]
    assert [f.detail.split(" runs")[0] for f in findings if " runs on cpu" in f.detail] == [
        "colours/1",
        "colours/2",
        "moving_digits/1",
    ]
    missing = found(Settings(models=tmp_path / "none"), "models", monkeypatch=monkeypatch)
    assert "found none at" in faults(missing)


def test_too_little_shared_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda where: SimpleNamespace(free=1 << 20))
    findings = found(Settings(decode_workers=2), "models", monkeypatch=monkeypatch)
    assert "2 decoders hand over clips of 900 KiB in /dev/shm, which has 1024 KiB free" in faults(findings)


def test_a_spool_that_is_not_there_or_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = found(Settings(spool_dir=tmp_path / "none"), "spool", monkeypatch=monkeypatch)
    assert "No such file" in faults(missing)
    (small,) = found(Settings(spool_dir=tmp_path, max_upload_bytes=1 << 60), "spool", monkeypatch=monkeypatch)
    assert (small.status, "less than one upload" in small.detail) == ("note", True)
    _, bounded = found(Settings(spool_dir=tmp_path, max_spool_bytes=1 << 60), "spool", monkeypatch=monkeypatch)
    assert (bounded.status, "more than is free" in bounded.detail) == ("note", True)


def test_a_sandbox_that_is_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(Settings(sandbox="off"), "decoder", monkeypatch=monkeypatch)
    assert [finding.status for finding in findings] == ["ok", "note"]


def test_keys_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{SECRET}\n")
    said = faults(found(Settings(api_keys_file=file), "access", monkeypatch=monkeypatch))
    assert "line 1: expected NAME:KEY" in said
    assert SECRET not in said


def test_a_service_open_to_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = found(Settings(host="0.0.0.0"), "access", monkeypatch=monkeypatch)
    assert finding.status == "note"


def hang(settings: Settings) -> Iterator[Any]:
    yield "ok", f"{os.getpid()}"
    time.sleep(1000)


def die(settings: Settings) -> Iterator[Any]:
    os._exit(3)
    yield


def fail(settings: Settings) -> Iterator[Any]:
    raise RuntimeError("as nobody foresaw")
    yield


def test_what_hangs_dies_or_fails_is_a_fault_and_the_rest_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(settings: Settings) -> Iterator[Any]:
        print("a library talks", flush=True)
        yield "ok", "well"

    monkeypatch.setattr(module, "CHECKS", {"a": hang, "b": die, "c": fail, "d": noisy})
    assert doctor(Settings(), limit_s=0.5) == 1
    first, *said = capfd.readouterr().out.splitlines()
    assert not lives(int(first.removeprefix("ok    a: ")))
    assert said == [
        "FAULT a: no result within 0.5 s: it hangs, or is far too slow",
        "FAULT b: the process that looked at it died",
        "FAULT c: RuntimeError: as nobody foresaw",
        "ok    d: well",
        "CANNOT serve as configured",
    ]

"""The deploy folder, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterable, Iterator
from functools import reduce
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TARGETS = ("cpu", "gpu")


# --- constraints.txt


def pin_lines() -> list[str]:
    return [line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pin_lines())}


def closure(requirements: Iterable[str]) -> dict[str, list[Requirement]]:
    """What installing these would install here, and who asks for which version.

    A package that is not installed here, such as the CUDA libraries, is counted without what it requires itself.
    """
    found: dict[str, list[Requirement]] = {}
    seen: set[str] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if f"{text} {extra}" in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add(f"{text} {extra}")
        name = canonicalize_name(requirement.name)
        extras = ["", *requirement.extras]
        if name == PROJECT["name"]:
            waiting += [(inner, "") for chosen in requirement.extras for inner in EXTRAS[chosen]]
            continue
        found.setdefault(name, []).append(requirement)
        try:
            waiting += [(inner, chosen) for inner in requires(name) or [] for chosen in extras]
        except PackageNotFoundError:
            continue
    return found


def test_constraints_are_exact_sorted_and_once_each() -> None:
    lines = pin_lines()
    assert lines == sorted(lines, key=str.lower)
    assert len(lines) == len(pins())
    for line in lines:
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "=="
        assert not {"*", "+"} & set(specifier.version), f"{line}: not one release of the public index"


def test_constraints_hold_all_that_is_installed() -> None:
    pinned = pins()
    for name, asked in closure([*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["dev"], *EXTRAS["gpu"]]).items():
        assert name in pinned, f"{name} is not in constraints.txt"
        for requirement in asked:
            assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]}, expected {requirement}"


def test_both_builds_of_onnxruntime_are_one_version() -> None:
    assert pins()["onnxruntime"] == pins()["onnxruntime-gpu"]


# --- Dockerfile

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Stage -> its instructions, those of the stage that it continues first."""
    lines = (line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, list[Instruction]] = {"": []}
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = [*found.get(base, [])]
        elif word:
            found[stage].append((word, rest.strip()))
    return found


def arguments(target: str, word: str) -> list[str]:
    return [rest for found, rest in stages()[target] if found == word]


def environment(target: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in arguments(target, "ENV") for pair in line.split())


def health_command() -> list[str]:
    (check,) = arguments("cpu", "HEALTHCHECK")
    command: list[str] = json.loads(check.partition("CMD")[2])
    return command


@pytest.fixture(params=TARGETS)
def requirements(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    """The target and what its image installs, by running the Dockerfile's own lines up to pip."""
    *_, run = arguments(f"{request.param}-dependencies", "RUN")
    script = run.partition(" && pip ")[0].partition("cache/pip ")[2]
    assert "requirements.txt" in script
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    return request.param, (tmp_path / "requirements.txt").read_text().splitlines()


def test_the_default_target_is_cpu() -> None:
    assert set(TARGETS) < set(stages())
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_two_layers_on_its_base(target: str) -> None:
    assert not arguments(target, "RUN")
    assert not arguments(target, "ADD")
    assert not arguments(target, "WORKDIR")
    assert arguments(target, "COPY") == [
        f"--from={target}-dependencies /opt/venv /opt/venv",
        "--from=project /project /opt/venv",
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_numbered_user_and_stops_by_signal(target: str) -> None:
    user, group = arguments(target, "USER")[-1].split(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert arguments(target, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(arguments(target, "ENTRYPOINT")[-1]) == ["python", "-m", "service"]
    assert arguments(target, "EXPOSE") == [environment(target)["TTVIDEO_PORT"]]
    assert arguments(target, "HEALTHCHECK")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_sets_only_what_the_service_reads(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {name: value for name, value in environment(target).items() if name.startswith("TTVIDEO_")}
    assert {name.removeprefix("TTVIDEO_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert settings.provider == {"cpu": "cpu", "gpu": "cuda"}[target]


def test_an_image_installs_no_torch_and_one_onnxruntime(requirements: tuple[str, list[str]]) -> None:
    target, asked = requirements
    names = set(closure(asked))
    assert not {"torch", "triton", "onnx", "setuptools", "pytest"} & names
    assert names & {"onnxruntime", "onnxruntime-gpu"} == {{"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}[target]}
    assert any(name.startswith("nvidia-cudnn") for name in names) == (target == "gpu")
    assert names <= set(pins())


def test_the_build_context_holds_what_is_copied() -> None:
    first, *allowed, caches = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert (first, caches) == ("*", "**/__pycache__")
    copied = {
        source
        for stage in stages()
        for line in arguments(stage, "COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert {f"!{source}" for source in copied} == set(allowed)
    assert not [source for source in copied if not (ROOT / source).exists()]


@pytest.fixture(params=[200, 503])
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A server whose /readyz answers with this status: (status, port)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield request.param, server.server_port
        server.shutdown()
        thread.join()


def test_the_health_check_follows_readyz(answering: tuple[int, int]) -> None:
    status, port = answering
    nowhere = {"http_proxy": "http://127.0.0.1:9", "TTVIDEO_PORT": str(port)}
    command = [sys.executable, *health_command()[1:]]
    done = subprocess.run(command, env={**os.environ, **nowhere}, capture_output=True, timeout=60, check=False)
    assert (done.returncode == 0) == (status == 200), done.stderr.decode()


# --- docker-compose.yml and its override

RESET = object()


class Loader(yaml.SafeLoader):
    """YAML with Compose's `!reset`, which takes a value of an earlier file away."""


Loader.add_constructor("!reset", lambda *_: RESET)


def merged(*names: str) -> dict[str, Any]:
    """The files laid one over the other: mappings by key, all else replaced."""

    def lay(under: Any, over: Any) -> Any:
        if not isinstance(under, dict) or not isinstance(over, dict):
            return over
        both = {key: lay(under.get(key), over[key]) if key in over else under[key] for key in under | over}
        return {key: value for key, value in both.items() if value is not RESET}

    files = [yaml.load((DEPLOY / name).read_text(), Loader) for name in names]
    return reduce(lay, files)


COMPOSE = {"gpu": ("docker-compose.yml",), "cpu": ("docker-compose.yml", "docker-compose.cpu.yml")}


def check_specification(names: Iterable[str], folder: Path) -> None:
    """The files, laid one over the other, are a Compose file."""
    path = folder / "compose.json"
    path.write_text(json.dumps(merged(*names)))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_compose_files_follow_the_specification(target: str, tmp_path: Path) -> None:
    check_specification(COMPOSE[target], tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_compose_runs_its_target_locked_down(target: str) -> None:
    service = merged(*COMPOSE[target])["services"]["ttvideo"]
    assert service["image"] == f"ttvideo:{target}"
    assert service["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile", "target": target}
    assert service["ports"] == ["${TTVIDEO_PUBLISH:-127.0.0.1:8000}:8000"]
    assert service["volumes"] == ["${TTVIDEO_MODELS:-./models}:/models:ro"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp:size=1g,mode=1777"]
    assert int(service["environment"]["TTVIDEO_MAX_SPOOL_BYTES"]) < 1 << 30
    assert service["healthcheck"].keys() >= {"start_period", "interval", "timeout"}
    assert {name.removeprefix("TTVIDEO_").lower() for name in service["environment"]} <= set(Settings.model_fields)
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings.model_fields["deadline_s"].default
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}


def test_compose_reserves_a_gpu_for_the_gpu_alone() -> None:
    resources = {target: merged(*COMPOSE[target])["services"]["ttvideo"]["deploy"]["resources"] for target in TARGETS}
    assert resources["gpu"]["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "reservations" not in resources["cpu"]

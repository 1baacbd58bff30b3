"""One answer, or more, of every operation of the interface, by a service with the bundled model.

`python -m tests.service.routes.answers` writes them to service/routes/examples.json, which the description of the
interface shows; a test compares what is written there with what is answered.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from service.engine.repository import BUNDLED
from service.routes.examples import FILE
from service.settings import Settings
from tests.service.conftest import Service, running

SAMPLE = BUNDLED / "samples" / "down.mp4"
NAME, VERSION = "moving_digits", "1"


def settings(spool_dir: Path) -> Settings:
    return Settings(provider="cpu", decode_workers=1, model_control="explicit", spool_dir=spool_dir)


def ask(service: Service) -> dict[str, dict[str, Any]]:
    """The body of each answer, JSON where it is JSON, else text; by operation and by what was asked."""
    video = {"file": (SAMPLE.name, SAMPLE.read_bytes())}
    clip = {"name": "frames", "datatype": "UINT8", "shape": [1, 1, 120, 160, 3], "data": [0] * (120 * 160 * 3)}
    wanted = {"name": "probabilities", "parameters": {"classification": 2}}
    inference = {"id": "1", "inputs": [clip], "outputs": [{"name": "logits"}, wanted]}

    def get(path: str) -> Any:
        return _body(service.get(path))

    def post(path: str, **arguments: Any) -> Any:
        return _body(httpx.post(f"{service.url}{path}", timeout=60, **arguments))

    model, version = f"/v2/models/{NAME}", f"/v2/models/{NAME}/versions/{VERSION}"
    return {
        "index": {"index": get("/")},
        "livez": {"live": get("/livez")},
        "readyz": {"ready": get("/readyz")},
        "classify": {
            "clip": post("/classify?top_k=3", files=video),
            "timeline": post("/classify?top_k=1&window_s=1", files=video),
            "several files": post("/classify?top_k=3", files=[*video.items(), ("file", ("a.mp4", b"no video"))]),
        },
        "model": {"default": get("/model")},
        "models": {"all": get("/models")},
        "metrics": {"all": get("/metrics")},
        "server_metadata": {"server": get("/v2")},
        "all_statistics": {"all": get("/v2/models/stats")},
        "infer": {"clip": post(f"{model}/infer", json=inference)},
        "infer_version": {"clip": post(f"{version}/infer", json=inference)},
        "model_metadata": {"model": get(model)},
        "model_version_metadata": {"version": get(version)},
        "model_config": {"model": get(f"{model}/config")},
        "model_version_config": {"version": get(f"{version}/config")},
        "model_statistics": {"model": get(f"{model}/stats")},
        "model_version_statistics": {"version": get(f"{version}/stats")},
        "repository_index": {"all": post("/v2/repository/index")},
        "log_settings": {"settings": get("/v2/logging")},
        "update_log_settings": {"unchanged": post("/v2/logging", json={})},
        "trace_settings": {"settings": get("/v2/trace/setting")},
        "update_trace_settings": {"unchanged": post("/v2/trace/setting", json={})},
        "model_trace_settings": {"settings": get(f"{model}/trace/setting")},
        "update_model_trace_settings": {"unchanged": post(f"{model}/trace/setting", json={})},
    }


def _body(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/json":
        return answer.json()
    return "".join(line for line in answer.text.splitlines(keepends=True) if "ttvideo_build" in line)


def main() -> None:
    with tempfile.TemporaryDirectory() as spool, running(settings(Path(spool))) as service:
        answers = ask(service)
    details = json.dumps(json.loads(FILE.read_text())["details"], indent=2)
    lines = ",\n".join(f'  "{operation}": {json.dumps(bodies)}' for operation, bodies in answers.items())
    FILE.write_text(f'{{\n"details": {details},\n"answers": {{\n{lines}\n}}\n}}\n')


if __name__ == "__main__":
    main()

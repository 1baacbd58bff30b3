"""The exported file runs unchanged in a browser: in onnxruntime-web, ONNX Runtime as WebAssembly, under Node."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.graph import build
from exporters.timing import feeds
from exporters.to_onnx import export
from tests.exporters.test_to_onnx import save
from tests.made import tiny_config
from tests.tolerances import BROWSER
from ttmodels.contraction import Plan

BROWSER_DIR = Path(__file__).parent / "browser"
BUNDLED = Path(__file__).parents[2] / "service" / "bundled" / "moving_digits" / "1" / "model.onnx"
PARTS = ("package.json", "package-lock.json", "run.mjs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def browser() -> Path:
    """A folder with run.mjs and the packages of package-lock.json, in the user's cache; the network is used once."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}: install nodejs and npm")
    version = hashlib.sha256(b"".join((BROWSER_DIR / part).read_bytes() for part in PARTS)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttvideo"
    folder = cache / f"browser-{version}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            fresh = Path(temporary) / "browser"
            fresh.mkdir()
            for part in PARTS:
                shutil.copy(BROWSER_DIR / part, fresh)
            _node(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], fresh)
            fresh.rename(folder)
    return folder


def _node(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"


def in_browser(browser: Path, model: Path, fed: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The model's outputs by onnxruntime-web."""
    shutil.copy(model, folder / "model.onnx")
    inputs = [{"name": name, "type": str(array.dtype), "dims": array.shape} for name, array in fed.items()]
    (folder / "inputs.json").write_text(json.dumps(inputs))
    for name, array in fed.items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    _node(["node", "run.mjs", str(folder)], browser)
    return {
        output["name"]: np.fromfile(folder / f"{output['name']}.bin", output["type"]).reshape(output["dims"])
        for output in json.loads((folder / "outputs.json").read_text())
    }


def compare(browser: Path, model: Path, batch: int, time: int, folder: Path) -> None:
    """Outputs of clips of several lengths, in the browser and in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (batch, time, *session.get_inputs()[0].shape[2:]), np.uint8)
    fed = feeds(session, frames) | {"lengths": np.arange(time - batch + 1, time + 1, dtype=np.int32)}
    got = in_browser(browser, model, fed, folder)
    want = dict(zip((output.name for output in session.get_outputs()), session.run(None, fed), strict=True))
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype
        assert got[name].shape == expected.shape
        assert np.ptp(expected) > 100 * BROWSER
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=BROWSER, err_msg=name)


def test_the_bundled_model(browser: Path, tmp_path: Path) -> None:
    compare(browser, BUNDLED, 2, 16, tmp_path)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_each_cell(cell: str, browser: Path, tmp_path: Path) -> None:
    export(save(tmp_path / "a.safetensors", tiny_config(cell=cell)), tmp_path / "exported.onnx", name="made")
    compare(browser, tmp_path / "exported.onnx", 3, 7, tmp_path)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"precision": "int8"}),
        ({}, {"precision": "fp16"}),
        ({}, {"streaming": True}),
        ({"activation": "gelu"}, {}),
        ({"num_layers": 2, "bidirectional": True, "pooling": "mean"}, {}),
        ({"reset_after": False}, {}),
    ],
    ids=["int8", "fp16", "streaming", "a Scan", "layers and directions", "reset before"],
)
def test_each_form(changes: dict, options: dict, browser: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "a.safetensors", tiny_config(**changes)).model()
    path = tmp_path / "built.onnx"
    path.write_bytes(ir.to_proto(build(model, Plan((2, 2)), **options)).SerializeToString())
    compare(browser, path, 3, 7, tmp_path)

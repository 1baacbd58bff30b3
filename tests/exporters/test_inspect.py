"""The report on a model file: everything in it, from any ONNX file, and one clear line about a broken one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from exporters import inspect, mlp
from exporters.cost import cost
from exporters.graph import build
from exporters.inspect import assignment
from service.engine.provider import CPU
from service.manifest import METADATA_KEY, Manifest
from tests.exporters.test_browser import BUNDLED
from tests.exporters.test_folding import merged
from tests.exporters.test_mlp import CONFIGS
from tests.made import tiny_config
from ttmodels import checkpoint
from ttmodels.checkpoint import MLPCheckpoint, Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.contraction import Plan
from ttmodels.mlp import MLPClassifier


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An ONNX file of somebody else's: y = relu(x w), rows open."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"], name="product"), helper.make_node("Relu", ["a"], ["y"], "act")],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, (3, 4), [0.0] * 12)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert inspect.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_everything_about_an_exported_file(capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(BUNDLED)
    manifest = Manifest.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    out = printed(capsys, BUNDLED)
    for line in (
        rf"name +{manifest.name}",
        rf"labels +{', '.join(manifest.labels)}",
        rf"checkpoint_sha256 +{manifest.checkpoint_sha256}",
        r"num_frames +16",
        r"resize_filter +area",
        r"tt_ranks +1, 8, 8, 8, 1",
        r"opset +21 of ai.onnx",
        r"input +frames uint8 \[batch, time, 120, 160, 3\]",
        r"output +logits_over_time float \[batch, time, 9\]",
        r"split +unseen: balls",
    ):
        assert re.search(rf"^ *{line}$", out, re.MULTILINE), line
    sizes = {
        weight.name: onnx.numpy_helper.to_array(weight).size
        for weight in model.graph.initializer
        if weight.data_type in (TensorProto.FLOAT, TensorProto.INT8)
    }
    (identity,) = [node.input[1] for node in model.graph.node if node.op_type == "GRU"]
    assert f"parameters  {sum(sizes.values()) - sizes[identity]:,} values in {len(sizes) - 1} tensors" in out
    assert f"identity    {sizes[identity]:,} values in 1 tensors" in out
    assert "cost at batch 1, time 16" in out
    macs = cost(model, {"batch": 1, "time": 16}).macs.total()
    assert re.search(rf"^ *MACs +{macs:,} +{macs / 16:,.0f}$", out, re.MULTILINE)


def test_no_field_of_the_manifest_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, BUNDLED)
    for name, value in json.loads(_metadata(BUNDLED)[METADATA_KEY]).items():
        assert value in ("", None, [], {}) or re.search(rf"^  {name}\b", out, re.MULTILINE), name


def test_sizes_are_the_asker_s(capsys: pytest.CaptureFixture[str]) -> None:
    macs = cost(onnx.load(BUNDLED), {"batch": 4, "time": 3}).macs.total()
    out = printed(capsys, BUNDLED, "--size", "batch=4", "--size", "time=3")
    assert re.search(rf"^ *MACs +{macs:,} +{macs / 12:,.0f}$", out, re.MULTILINE)


def test_a_foreign_file_lacks_the_manifest_and_nothing_else(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, foreign, "--size", "rows=5")
    assert f"manifest\n  none: not a model file of ttvideo, which has the metadata key {METADATA_KEY}\n" in out
    assert "ops         2: MatMul 1, Relu 1" in out
    assert re.search(r"^ *MACs +60$", out, re.MULTILINE)
    assert re.search(rf"^ *{CPU} +MatMul +product$", out, re.MULTILINE)


def test_a_manifest_of_another_version_is_said_and_the_rest_shown(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(foreign)
    helper.set_model_props(model, {METADATA_KEY: "{}"})
    foreign.write_bytes(model.SerializeToString())
    out = printed(capsys, foreign)
    assert "its manifest does not fit format 1: name: Field required" in out
    assert "ops         2: MatMul 1, Relu 1" in out


def test_ops_inside_a_scan_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = build(ClipClassifier(tiny_config()), Plan((2, 2)))
    (tmp_path / "scan.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    out = printed(capsys, tmp_path / "scan.onnx")
    assert re.search(r"^ *ops .*\bMatMul 3\b.*\bScan 1\b", out, re.MULTILINE)  # two in the body, one in the head
    assert Counter(op for _, op, _ in assignment(tmp_path / "scan.onnx"))["MatMul"] == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_images_and_features(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = MLPClassifier(CONFIGS[name]), tmp_path / "a.onnx"
    checkpoint.save(tmp_path / "a.safetensors", model, TrainConfig(), Progress())
    saved = checkpoint.load_any(tmp_path / "a.safetensors")
    assert isinstance(saved, MLPCheckpoint)
    manifest = mlp.export(saved, path, name="made")
    out = printed(capsys, path, "--size", "batch=5")
    assert re.search(rf"^  reads +{manifest.reads}$", out, re.MULTILINE)
    assert re.search(rf"^  num_parameters +{manifest.num_parameters}$", out, re.MULTILINE)
    assert "cost at batch 5" in out


def test_the_assignment_is_that_of_a_run(tmp_path: Path) -> None:
    """What ONNX Runtime says beforehand against the profile of a run of the same, not further optimised, graph."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(BUNDLED, options, providers=[CPU])
    clip = {"frames": np.zeros((1, 2, 120, 160, 3), np.uint8), "lengths": np.array([2], np.int32)}
    session.run(None, clip | {"h": np.zeros((1, 1, 64), np.float32)})
    events = [event["args"] for event in json.loads(Path(session.end_profiling()).read_text()) if "args" in event]
    ran = Counter((args["provider"], args["op_name"]) for args in events if args.get("provider"))
    said = Counter((provider, op) for provider, op, _ in assignment(BUNDLED))
    assert said == ran


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", "expected an ONNX file, got something else or a broken one"),
        (BUNDLED.read_bytes()[:200_000], "expected an ONNX file, got something else or a broken one"),
        (b"", "expected an ONNX file with a graph, got one of 0 bytes without"),
    ],
    ids=["text", "cut", "empty"],
)
def test_a_broken_file_is_one_line(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert inspect.main([str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: {message}\n"


def test_a_file_that_onnx_runtime_does_not_load(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be said of it is said first."""
    model = onnx.load(foreign)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Relux", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    foreign.write_bytes(model.SerializeToString())
    assert inspect.main([str(foreign)]) == 2
    out, err = capsys.readouterr()
    assert "ops         2: MatMul 1, com.example.Relux 1" in out
    assert "left out, since what they cost is not known: Relux 1" in out
    assert re.search(r"^ *MACs, at least +12$", out, re.MULTILINE)
    assert "does not load it" in err
    assert "Relux" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "none.onnx: No such file or directory"),
        ([str(BUNDLED), "--size", "tim=3"], "expected sizes of batch, time, got one of tim"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("size", ["batch", "=3", ""])
def test_a_size_has_a_name(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inspect.main([str(BUNDLED), "--size", size])
    assert f"argument --size: expected NAME=N, as in batch=16, got {size!r}" in capsys.readouterr().err


def test_nodes_that_are_folded_are_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "merged.onnx").write_bytes(merged().SerializeToString())
    out = printed(capsys, tmp_path / "merged.onnx")
    assert re.search(r"^ *parameters +32 values in 2 tensors, 128 B$", out, re.MULTILINE)
    assert re.search(r"^ *folded at load +3 nodes, 60 MACs$", out, re.MULTILINE)
    assert re.search(r"^ *once loaded +parameters: 15 values in 1 tensors, 60 B$", out, re.MULTILINE)
    assert re.search(r"^ *MACs +30$", out, re.MULTILINE)
    assert re.search(r"^  of 6 in the file, 3 are folded at load; .* leave 2$", out, re.MULTILINE)


@pytest.mark.slow
def test_nobody_reads_on() -> None:
    command = f"{sys.executable} -m exporters.inspect {BUNDLED}"
    script = f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("manifest\n", "")
    assert done.returncode in (0, 141)


def test_cuda_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inspect, "cuda_fault", lambda: "no driver")
    assert inspect.main([str(BUNDLED), "--provider", "cuda"]) == 2
    assert capsys.readouterr() == ("", "error: expected CUDA, which cannot be used here: no driver\n")


@pytest.mark.gpu
def test_on_cuda_the_products_are_there() -> None:
    providers = {op: provider for provider, op, _ in assignment(BUNDLED, "cuda")}
    assert {providers["MatMul"], providers["GRU"]} == {"CUDAExecutionProvider"}


@pytest.mark.slow
def test_the_command_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from exporters import inspect; "
        f"sys.exit(inspect.main([{str(BUNDLED)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "moving_digits" in done.stdout


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}

"""What is made of constants, against what ONNX Runtime runs and gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporters.cost import cost, folded_macs
from exporters.folding import fold
from exporters.inspect import assignment
from exporters.weights import weight_bytes
from service.engine.provider import CPU
from tests.exporters.test_cost import model
from ttmodels import compress

A, B, X = (3, 4), (4, 5), (2, 3)


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), providers=[CPU]).run(None, feeds))


def merged() -> onnx.ModelProto:
    """y = x (a b) + random, whose weights are merged while it is loaded."""
    nodes = [
        helper.make_node("Constant", [], ["ones"], value=numpy_helper.from_array(np.ones(B, np.float32))),
        helper.make_node("Add", ["b", "ones"], ["b1"]),
        helper.make_node("MatMul", ["a", "b1"], ["ab"]),
        helper.make_node("MatMul", ["x", "ab"], ["product"]),
        helper.make_node("RandomUniform", [], ["noise"], shape=[2, 5], low=0.0, high=1e-9),
        helper.make_node("Add", ["product", "noise"], ["y"]),
    ]
    made = model(nodes, {"x": X}, ["y"], {"a": A, "b": B})
    a = made.graph.initializer[0]
    a.CopyFrom(numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(A), "a"))
    return made


def test_what_is_made_of_constants_goes_and_the_answers_stay() -> None:
    made = merged()
    folded = fold(made)
    assert [node.op_type for node in folded.nodes] == ["Constant", "Add", "MatMul"]
    assert [node.op_type for node in folded.model.graph.node] == ["MatMul", "RandomUniform", "Add"]
    assert [weight.name for weight in folded.model.graph.initializer] == ["ab"]
    x = np.random.default_rng(0).normal(size=X).astype(np.float32)
    assert np.allclose(run(made, x=x)[0], run(folded.model, x=x)[0], atol=1e-6)
    assert len(made.graph.node) == 6  # is left as it was


def test_its_macs_are_not_those_of_a_run() -> None:
    folded = fold(merged())
    assert folded_macs(folded) == 3 * 4 * 5
    found = cost(folded.model, {})
    assert found.macs == {"MatMul": 2 * 3 * 5}
    assert found.weight_bytes == weight_bytes(folded.model.graph) == 4 * 3 * 5


def test_a_weight_that_may_be_fed_is_no_constant() -> None:
    made = merged()
    made.graph.input.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, A))
    assert [node.op_type for node in fold(made).nodes] == ["Constant", "Add"]
    made.ir_version = 3  # where every weight stands among the inputs
    assert [node.op_type for node in fold(made).nodes] == ["Constant", "Add", "MatMul"]


def test_nodes_of_a_body_go_too() -> None:
    """Its own weights and those around it; what the body hands out is made in it."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("h", "x", "next", "y")}
    nodes = [
        helper.make_node("MatMul", ["outer", "inner"], ["w"]),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["next"]),
        helper.make_node("Neg", ["inner"], ["y"]),
    ]
    inner = helper.make_tensor("inner", TensorProto.FLOAT, (4, 4), np.eye(4).ravel())
    body = helper.make_graph(nodes, "body", [values["h"], values["x"]], [values["next"], values["y"]], [inner])
    scan = helper.make_node("Scan", ["h0", "xs"], ["hT", "ys"], body=body, num_scan_inputs=1)
    made = model([scan], {"h0": (2, 4), "xs": (7, 2, 4)}, ["hT", "ys"], {"outer": (4, 4)})
    folded = fold(made)
    assert [node.output[0] for node in folded.nodes] == ["w"]
    assert folded_macs(folded) == 4 * 4 * 4
    assert cost(folded.model, {}).macs == {"MatMul": 7 * 2 * 4 * 4}
    feeds = {"h0": np.ones((2, 4), np.float32), "xs": np.ones((7, 2, 4), np.float32)}
    for got, want in zip(run(folded.model, **feeds), run(made, **feeds), strict=True):
        assert np.array_equal(got, want)


def test_a_constant_that_cannot_be_computed_is_named() -> None:
    made = model([helper.make_node("MatMul", ["a", "b"], ["y"])], {}, ["y"], {"a": (3, 4), "b": (3, 4)})
    with pytest.raises(ValueError, match=r"ONNX Runtime [\d.]+ does not compute its constants: .*MatMul"):
        fold(made)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("external", [False, True], ids=["one file", "weights beside it"])
def test_a_compressed_network_costs_what_runs(external: bool, tmp_path: Path) -> None:
    """torch.onnx.export leaves the merging of trains in the file: ONNX Runtime's profile of a run has none of it."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 512), nn.Linear(512, 256)
    )
    network, _ = compress(network.eval(), tt_ranks=8)
    program = torch.onnx.export(
        network, (torch.randn(3, 3, 32, 32),), dynamic_shapes=[{0: "batch"}], dynamo=True, verbose=False
    )
    assert program is not None
    path = tmp_path / "net.onnx"
    program.save(path, external_data=external)
    file = onnx.load(path, load_external_data=False)
    folded = fold(file, tmp_path)
    macs = profiled_macs(path, np.zeros((5, 3, 32, 32), np.float32))
    assert cost(folded.model, {"batch": 5}, tmp_path).macs.total() == macs
    assert cost(file, {"batch": 5}, tmp_path).macs.total() == macs + folded_macs(folded)
    assert folded_macs(folded) > macs
    gone = {node.name for node in folded.nodes}
    assert gone
    assert not gone & {name for _, _, name in assignment(path)}


def profiled_macs(path: Path, given: np.ndarray) -> int:
    """Of the products and convolutions of a run, by the shapes that ONNX Runtime says they had."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_name("run"))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=[CPU])
    session.run(None, {session.get_inputs()[0].name: given})
    total = 0
    for event in json.loads(Path(session.end_profiling()).read_text()):
        args = event.get("args", {})
        if args.get("op_name") in ("MatMul", "Gemm", "Conv") and "output_type_shape" in args:
            (first, second, *_), (output, *_) = (
                [shape for entry in args[f"{end}_type_shape"] for shape in entry.values()]
                for end in ("input", "output")
            )
            total += math.prod(output) * (math.prod(second[1:]) if args["op_name"] == "Conv" else first[-1])
    return total

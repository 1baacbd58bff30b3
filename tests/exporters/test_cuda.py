"""What CUDA does not take, told without a GPU; and with one, what ONNX Runtime says itself."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest

from exporters import cuda
from exporters.graph import build
from service.engine.provider import CPU, CUDA
from tests.made import random_classifier, tiny_config
from ttmodels.contraction import Plan

OTHER_FORMULAS = [
    ({"recurrent_activation": "hard_sigmoid"}, "GRU", "expected no activation_alpha"),
    ({"cell": "rnn", "activation": "relu"}, "RNN", "expected the activations Tanh, got Relu"),
    ({"reset_after": False}, "GRU", "expected linear_before_reset 1, got 0"),
]


def graph_of(*, how: dict[str, Any] | None = None, **config: Any) -> onnx.ModelProto:
    return ir.to_proto(build(random_classifier(tiny_config(**config)), Plan((2, 2)), **(how or {})))


@pytest.mark.parametrize("how", [{}, {"precision": "fp16"}, {"streaming": True}], ids=str)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_standard_formulas_run_on_cuda(cell: str, how: dict[str, Any]) -> None:
    model = graph_of(cell=cell, how={"target": "cuda", **how})
    assert cuda.refused(model) == []
    cuda.check(model.SerializeToString())


@pytest.mark.parametrize(("config", "op_type", "reason"), OTHER_FORMULAS)
def test_other_formulas_do_not_unless_the_graph_is_made_for_it(
    config: dict[str, Any], op_type: str, reason: str
) -> None:
    (found,) = cuda.refused(graph_of(**config))
    assert (found.op_type, found.reason) == (op_type, reason)
    assert cuda.refused(graph_of(how={"target": "cuda"}, **config)) == []


def test_activations_by_name_alone() -> None:
    node = onnx.helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=2, activations=["Relu"])
    assert cuda._other_formula(node) == "expected the activations Tanh, got Relu"
    node = onnx.helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=2)
    assert cuda._other_formula(node) == "expected linear_before_reset 1, got none"


def test_integer_products_and_unknown_ops_are_named_in_bodies_too() -> None:
    model = graph_of(how={"precision": "int8"})  # its product is in the body of a Scan
    (found,) = cuda.refused(model)
    assert (found.op_type, found.reason) == ("MatMulInteger", "expected int8 and int8, got uint8 and int8")
    with pytest.raises(ValueError, match=r"--target cuda: expected a graph that CUDA takes whole.*MatMulInteger"):
        cuda.check(model.SerializeToString())


def test_ops_that_are_not_known_are_refused() -> None:
    nodes = [
        onnx.helper.make_node("Sinh", ["x"], ["a"]),
        onnx.helper.make_node("FusedGemm", ["a"], ["b"], domain="com.microsoft"),
    ]
    opsets = [onnx.helper.make_opsetid(domain, 1 + 20 * (not domain)) for domain in ("", "com.microsoft")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "made", [], []), opset_imports=opsets)
    assert [str(one) for one in cuda.refused(model)] == [
        "Sinh a: no such op is known to run on CUDA",
        "FusedGemm b: expected a standard op, got one of the domain com.microsoft",
    ]


def test_reckoning_with_shapes_is_on_the_cpu_by_design() -> None:
    model = graph_of(how={"target": "cuda"})
    ops = {node.name: node.op_type for node in model.graph.node}
    found = {ops[name] for name in cuda.of_shapes(model)}
    assert "Shape" in found
    assert found <= {"Shape", "Squeeze", "Unsqueeze", "Concat", "Range", "Cast"}


def test_what_onnx_runtime_says_counts_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of(how={"target": "cuda"})
    names = {node.op_type: node.name for node in model.graph.node}
    given = [(CUDA, "MatMul", names["MatMul"]), (CPU, "Shape", names["Shape"])]
    monkeypatch.setattr(cuda, "cuda_fault", lambda: None)
    monkeypatch.setattr(cuda, "assignment", lambda data, device: given)
    cuda.check(model.SerializeToString())
    given.append((CPU, "GRU", names["GRU"]))
    with pytest.raises(ValueError, match=f"GRU {names['GRU']}: ONNX Runtime gives it to CPUExecutionProvider"):
        cuda.check(model.SerializeToString())


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{}, {"precision": "fp16"}, {"streaming": True}], ids=str)
def test_on_a_gpu(how: dict[str, Any]) -> None:
    for config in ({}, {"cell": "lstm", "num_layers": 2}, *(config for config, _, _ in OTHER_FORMULAS)):
        cuda.check(graph_of(how={"target": "cuda", **how}, **config).SerializeToString())

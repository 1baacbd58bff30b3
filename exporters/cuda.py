"""Which nodes of a graph ONNX Runtime's CUDA provider does not take, told from the graph, so that no GPU is needed.

The provider's kernels are listed in ONNX Runtime's docs/OperatorKernels.md; what its RNN, GRU and LSTM kernels refuse
besides is in the provider's own assignment of nodes: other activations than sigmoid and tanh, activation_alpha,
activation_beta, clip, and a GRU with linear_before_reset 0.

Arithmetic on shapes runs on the CPU by design: ONNX Runtime keeps what is made of Shape alone where its result is
needed, and nothing of a clip crosses over for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, shape_inference

from exporters.inspect import assignment
from service.engine.provider import CUDA, cuda_fault

_TAKEN = frozenset(
    "Add Cast Clip Concat Conv DequantizeLinear Div Elu Erf Exp Expand Gather GatherND Gelu Gemm "
    "GlobalAveragePool Greater HardSigmoid "
    "Identity Less MatMul Max Mul Neg Range Reciprocal ReduceSum Relu Reshape Scan Selu Shape Sigmoid Slice "
    "Softplus Softsign Split Squeeze Sub Tanh Transpose Unsqueeze Where".split()
)
"""Ops with a kernel for every type that our graphs have them with."""
_RECURRENT = {"RNN": {"Tanh"}, "GRU": {"Sigmoid", "Tanh"}, "LSTM": {"Sigmoid", "Tanh"}}
"""Ops whose kernel takes the standard formula alone, and that formula's activations."""


@dataclass(frozen=True)
class Refused:
    """A node that would run on the CPU."""

    node: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.node}: {self.reason}"


def refused(model: onnx.ModelProto) -> list[Refused]:
    """The nodes, those in bodies too, that the CUDA provider does not take."""
    inferred = shape_inference.infer_shapes(model)
    return [
        Refused(node.name or node.output[0], node.op_type, reason)
        for node, types in _nodes(inferred.graph, {})
        if (reason := _reason(node, types))
    ]


def check(data: bytes) -> None:
    """Pass a graph of which CUDA takes every node: by the graph, and where there is a GPU by what ONNX Runtime does.

    Raises:
        ValueError: names the nodes that would run on the CPU.
    """
    model = onnx.load_from_string(data)
    faults = [str(node) for node in refused(model)]
    if not faults and cuda_fault() is None:
        by_design = of_shapes(model)
        faults = [
            f"{op_type} {name}: ONNX Runtime gives it to {provider}"
            for provider, op_type, name in assignment(data, "cuda")
            if provider != CUDA and name not in by_design
        ]
    if faults:
        raise ValueError(f"--target cuda: expected a graph that CUDA takes whole, got nodes for the CPU: "
                         f"{'; '.join(faults)}")  # fmt: skip


def of_shapes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that reckon with shapes alone, which run on the CPU by design."""
    known = {weight.name for weight in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type == "Shape" or (node.input and all(name in known for name in node.input)):
            known.update(node.output)
            found.add(node.name)
    return found


def _nodes(graph: onnx.GraphProto, outer: Mapping[str, int]) -> Iterator[tuple[onnx.NodeProto, Mapping[str, int]]]:
    """Each node with the element types of the values that it may name."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {**outer, **{info.name: info.type.tensor_type.elem_type for info in infos}}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g, types)


def _reason(node: onnx.NodeProto, types: Mapping[str, int]) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"expected a standard op, got one of the domain {node.domain}"
    if node.op_type in _RECURRENT:
        return _other_formula(node)
    if node.op_type == "MatMulInteger":
        sides = [types.get(name, TensorProto.UNDEFINED) for name in node.input[:2]]
        if sides != [TensorProto.INT8, TensorProto.INT8]:
            names = " and ".join(TensorProto.DataType.Name(side).lower() for side in sides)
            return f"expected int8 and int8, got {names}"
        return None
    return None if node.op_type in _TAKEN else "no such op is known to run on CUDA"


def _other_formula(node: onnx.NodeProto) -> str | None:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    given = [name for name in ("activation_alpha", "activation_beta", "clip") if name in attributes]
    if given:
        return f"expected no {given[0]}"
    names = {name.decode().capitalize() for name in attributes.get("activations", [])}
    if other := sorted(names - _RECURRENT[node.op_type]):
        return f"expected the activations {', '.join(sorted(_RECURRENT[node.op_type]))}, got {', '.join(other)}"
    if node.op_type == "GRU" and attributes.get("linear_before_reset", 0) != 1:
        return f"expected linear_before_reset 1, got {attributes.get('linear_before_reset', 'none')}"
    return None

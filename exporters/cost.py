"""What one run of an ONNX graph costs: multiply-accumulates, bytes of activations and of weights.

Multiply-accumulates are those of products, convolutions and recurrences. Bytes are counted op by op, as if no two ops
were fused: each reads its inputs and writes its outputs; ops that only view their input move nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper, shape_inference

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"}
"""Ops that ONNX Runtime runs without touching the values."""


@dataclass
class Cost:
    """Of one run at given sizes."""

    macs: Counter[str] = field(default_factory=Counter)
    """Multiply-accumulates by op."""
    activation_bytes: int = 0
    """Read and written by all ops, weights left out."""
    weight_bytes: int = 0
    """Of the weights, each once."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Ops that are not in the figures, since the shape of an input or output is known only when they run."""


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    item_bytes: int
    is_weight: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * self.item_bytes


_Values = Mapping[str, _Tensor | None]
"""None: not known before a run."""


def open_dimensions(model: onnx.ModelProto) -> list[str]:
    """Names of the dimensions that the file's inputs leave open."""
    dims = (dim for value in fed_inputs(model.graph) for dim in value.type.tensor_type.shape.dim)
    return list(dict.fromkeys(dim.dim_param for dim in dims if dim.dim_param))


def fed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs without a value of their own: old files list their weights among the inputs."""
    weights = {weight.name for weight in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside nodes, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from bodies(attribute.g)


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Of all weights of a graph, each once."""
    return sum(_weight(weight).num_bytes for weight in graph.initializer)


def cost(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Cost:
    """What one run costs with the file's open dimensions at `sizes`; those that are not named are 1.

    Raises:
        ValueError: a size for a dimension that the file does not have, or one that does not fit its graph.
    """
    if unknown := sizes.keys() - open_dimensions(model):
        named = ", ".join(open_dimensions(model)) or "nothing"
        raise ValueError(f"expected sizes of {named}, got one of {', '.join(sorted(unknown))}")
    sized = _with_sizes(model, sizes)
    total = Cost(weight_bytes=weight_bytes(sized.graph))
    _add(total, sized.graph, {}, times=1)
    return total


def _with_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy with every dimension of the inputs given, and the shapes that follow from them inferred anew."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in fed_inputs(copy.graph):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param, 1)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    views = [weight for weight in copy.graph.initializer if weight.data_type == onnx.TensorProto.INT64]
    for body in bodies(copy.graph):  # inference knows the types of values around a body, but not a view's numbers
        body.initializer.extend(views)
    try:
        return shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ValueError(f"the graph does not fit the sizes {dict(sizes)}: {' '.join(str(error).split())}") from error


def _add(total: Cost, graph: onnx.GraphProto, outer: _Values, *, times: int) -> None:
    """Add the nodes of a graph that runs `times` times; they may also name the values `outer` of the graph around."""
    values = {**outer, **{info.name: _known(info.type) for info in (*graph.input, *graph.value_info, *graph.output)}}
    values |= {weight.name: _weight(weight) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type in VIEWS:
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        body = attributes.get("body")
        ends = [name for name in (*node.input, *node.output) if name]
        tensors = {name: tensor for name in ends if (tensor := values.get(name)) is not None}
        if len(tensors) < len(set(ends)) or (node.op_type in ("If", "Loop")):
            total.left_out[node.op_type] += 1
            continue
        total.activation_bytes += times * sum(tensors[name].num_bytes for name in ends if not tensors[name].is_weight)
        if body is not None:
            scanned = tensors[node.input[len(node.input) - attributes["num_scan_inputs"]]]
            _add(total, body, values, times=times * scanned.shape[attributes.get("scan_input_axes", [0])[0]])
        elif macs := _macs(
            node.op_type,
            [tensors[name] for name in node.input if name],
            tensors[node.output[0] or node.output[1]],
            attributes,
        ):
            total.macs[node.op_type] += times * macs


def _macs(op_type: str, inputs: Sequence[_Tensor], output: _Tensor, attributes: Mapping[str, Any]) -> int:
    match op_type:
        case "MatMul" | "MatMulInteger" | "QLinearMatMul":
            return output.size * inputs[0].shape[-1]
        case "Gemm":
            return output.size * inputs[0].shape[0 if attributes.get("transA") else 1]
        case "Conv" | "ConvInteger":
            return output.size * math.prod(inputs[1].shape[1:])
        case "QLinearConv":
            return output.size * math.prod(inputs[3].shape[1:])
        case "ConvTranspose":
            return inputs[0].size * math.prod(inputs[1].shape[1:])
        case "RNN" | "GRU" | "LSTM":  # each step of each clip meets W and R, the second and third inputs
            steps_of_clips = math.prod(inputs[0].shape[:2])
            return steps_of_clips * (inputs[1].size + inputs[2].size)
        case _:
            return 0


def _known(kind: onnx.TypeProto) -> _Tensor | None:
    dims = kind.tensor_type.shape.dim
    if not kind.tensor_type.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return _Tensor(tuple(dim.dim_value for dim in dims), _item_bytes(kind.tensor_type.elem_type))


def _weight(weight: onnx.TensorProto) -> _Tensor:
    return _Tensor(tuple(weight.dims), _item_bytes(weight.data_type), is_weight=True)


def _item_bytes(elem_type: int) -> int:
    return helper.tensor_dtype_to_np_dtype(elem_type).itemsize

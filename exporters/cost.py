"""What one run of an ONNX graph costs: multiply-accumulates, bytes of activations and of weights.

Multiply-accumulates are those of products, convolutions and recurrences. Bytes are counted op by op, as if no two ops
were fused: each reads its inputs and writes its outputs; ops that only view their input move nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from exporters.folding import Folded, bodies, session
from exporters.weights import item_bytes, weight_bytes

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"}
"""Ops that ONNX Runtime runs without touching the values."""

_NOT_COUNTED = {"If", "Loop", "Einsum", "Attention", "DeformConv"}
"""Ops with products inside that are not told here, as those of other domains than ONNX's own."""


@dataclass
class Cost:
    """Of one run at given sizes."""

    macs: Counter[str] = field(default_factory=Counter)
    """Multiply-accumulates by op."""
    activation_bytes: int = 0
    """Read and written by all ops, weights left out."""
    weight_bytes: int = 0
    """Of the weights, each once."""
    shapes_from_a_run: int = 0
    """Values whose shape was looked up in a run on zeros (True for flags), which is another's where it hangs on what
    is fed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Ops that are not in the figures: a shape is known only when they run, or what they do is not told here."""


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


def folded_macs(folded: Folded) -> int:
    """What was computed while the graph was loaded, once."""
    known = {name: _weight(weight) for name, weight in folded.weights.items()}
    known |= {name: _Tensor(value.shape, value.itemsize) for name, value in folded.constants.items()}
    return sum(_macs(node, known) for node in folded.nodes)


def cost(model: onnx.ModelProto, sizes: Mapping[str, int], folder: Path | None = None) -> Cost:
    """What one run costs with the file's open dimensions at `sizes`; those that are not named are 1.

    Shapes that do not follow from those of the inputs are looked up in a run.

    Args:
        folder: where weights lie that the file keeps elsewhere.

    Raises:
        ValueError: a size for a dimension that the file does not have, or one that does not fit its graph.
    """
    check_sizes(model, sizes)
    sized = _with_sizes(model, sizes)
    total = Cost(weight_bytes=weight_bytes(sized.graph))
    if unknown := _unknown(sized.graph):
        seen = _seen(model, unknown, {value.name: _blank(value.type) for value in fed_inputs(sized.graph)}, folder)
        sized.graph.value_info.extend(seen)
        sized = _inferred(sized)
        total.shapes_from_a_run = len(seen)
    _add(total, sized.graph, {}, times=1)
    return total


def check_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Pass sizes of dimensions that the file leaves open.

    Raises:
        ValueError: names the others.
    """
    if unknown := sizes.keys() - open_dimensions(model):
        named = ", ".join(open_dimensions(model)) or "nothing"
        raise ValueError(f"expected sizes of {named}, got one of {', '.join(sorted(unknown))}")


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
    views = [weight for weight in copy.graph.initializer if weight.data_type == TensorProto.INT64]
    for body in bodies(copy.graph):  # inference knows the types of values around a body, but not a view's numbers
        body.initializer.extend(views)
    try:
        return _inferred(copy)
    except shape_inference.InferenceError as error:
        raise ValueError(f"the graph does not fit the sizes {dict(sizes)}: {' '.join(str(error).split())}") from error


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _unknown(graph: onnx.GraphProto) -> list[str]:
    """Values of the graph, bodies left out, whose shape is not known before a run."""
    known = {info.name for info in (*graph.value_info, *graph.output) if _known(info.type) is not None}
    return [name for node in graph.node for name in node.output if name and name not in known]


def _seen(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, np.ndarray | None], folder: Path | None
) -> list[onnx.ValueInfoProto]:
    """The values' types and shapes in a run; none where the graph does not run."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        found = session(exposed, folder).run(names, feeds)
    except Exception:  # whatever it is: what it costs stays out of the figures, and is named
        return []
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, found, strict=True)
        if isinstance(value, np.ndarray)
    ]


def _blank(kind: onnx.TypeProto) -> np.ndarray | None:
    """Zeros, or True, of a tensor's type and shape; None for what is no tensor."""
    if not kind.HasField("tensor_type"):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
    return np.full([dim.dim_value for dim in kind.tensor_type.shape.dim], dtype == np.bool_, dtype)


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
        if len(tensors) < len(set(ends)) or node.op_type in _NOT_COUNTED or node.domain:
            total.left_out[node.op_type] += 1
            continue
        total.activation_bytes += times * sum(tensors[name].num_bytes for name in ends if not tensors[name].is_weight)
        if body is not None:
            scanned = tensors[node.input[len(node.input) - attributes["num_scan_inputs"]]]
            _add(total, body, values, times=times * scanned.shape[attributes.get("scan_input_axes", [0])[0]])
        elif macs := _macs(node, tensors):
            total.macs[node.op_type] += times * macs


def _macs(node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> int:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [tensors[name] for name in node.input if name]
    output = tensors[next(name for name in node.output if name)]
    match node.op_type:
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
    return _Tensor(tuple(dim.dim_value for dim in dims), item_bytes(kind.tensor_type.elem_type))


def _weight(weight: onnx.TensorProto) -> _Tensor:
    return _Tensor(tuple(weight.dims), item_bytes(weight.data_type), is_weight=True)

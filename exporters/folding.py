"""What ONNX Runtime computes of a graph while it loads it: everything that is made of constants alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from service.engine.provider import CPU

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_NO_TENSORS = ("Sequence", "Optional")


@dataclass(frozen=True)
class Folded:
    """A graph once it is loaded."""

    model: onnx.ModelProto
    """What is left to run: values made of constants are initializers, and no others are there than are read."""
    nodes: tuple[onnx.NodeProto, ...]
    """What is gone."""
    constants: Mapping[str, np.ndarray]
    """Every value that these made."""
    weights: Mapping[str, onnx.TensorProto]
    """The constants of the file."""


def fold(model: onnx.ModelProto, folder: Path | None = None) -> Folded:
    """The graph with every node computed, those in bodies too, whose inputs are constants.

    Args:
        folder: where weights lie that the file keeps elsewhere.

    Raises:
        ValueError: ONNX Runtime does not compute one of them.
    """
    left = onnx.ModelProto()
    left.CopyFrom(model)
    weights = {weight.name: weight for weight in left.graph.initializer}
    if model.ir_version >= 4:  # what is an input too may be fed; older files list every weight among the inputs
        for value in left.graph.input:
            weights.pop(value.name, None)
    nodes = list(_taken(left.graph, weights, set(weights), is_body=False))
    constants = _computed(model, nodes, list(weights.values()), folder) if nodes else {}
    read = set(_read(left.graph))
    kept = [weight for weight in left.graph.initializer if weight.name in read]
    del left.graph.initializer[:]
    left.graph.initializer.extend(kept)
    left.graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in constants if name in read)
    return Folded(left, tuple(nodes), constants, weights)


def session(model: onnx.ModelProto, folder: Path | None) -> onnxruntime.InferenceSession:
    """Runs the graph as it is written, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside nodes, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from bodies(attribute.g)


def _taken(
    graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto], known: set[str], *, is_body: bool
) -> Iterator[onnx.NodeProto]:
    """Take the nodes out of a graph; `weights` gains those of the bodies, `known` the names of what is constant."""
    bound = {value.name for value in graph.output} if is_body else set()  # a body's output is made in the body
    left = []
    for node in graph.node:
        inner = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
        for body in inner:
            own = {weight.name: weight for weight in body.initializer}
            weights |= own
            yield from _taken(body, weights, known | own.keys() - {value.name for value in body.input}, is_body=True)
        if inner or not _is_constant(node, known) or bound & set(node.output):
            left.append(node)
        else:
            known.update(node.output)
            yield node
    del graph.node[:]
    graph.node.extend(left)


def _is_constant(node: onnx.NodeProto, known: set[str]) -> bool:
    if node.domain or node.op_type in _RANDOM or any(kind in node.op_type for kind in _NO_TENSORS):
        return False
    if node.op_type == "DequantizeLinear":  # ONNX Runtime keeps it, to make one of it and the product that it feeds
        return False
    return all(name in known for name in node.input if name)


def _computed(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto], folder: Path | None
) -> dict[str, np.ndarray]:
    names = [name for node in nodes for name in node.output if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph(nodes, "constants", [], outputs, weights)
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        return dict(zip(names, session(made, folder).run(names, {}), strict=True))
    except Exception as error:  # it has a class of its own for every code
        raise ValueError(
            f"ONNX Runtime {onnxruntime.__version__} does not compute its constants: {' '.join(str(error).split())}"
        ) from error


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a graph's nodes read, at any depth, and its outputs."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _read(attribute.g)

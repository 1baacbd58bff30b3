"""What of a graph's initializers was learnt."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from exporters.weights import initializers


def test_parameters_are_told_from_shapes_and_from_an_identity() -> None:
    """The last GRU's input weights are no reordering: its first row is there twice."""
    eye = np.eye(6, dtype=np.float32)[None]
    weights = {
        "identity": eye,
        "reordered": eye[:, [2, 3, 0, 1, 4, 5]],
        "learnt": eye[:, [0, 0, 2, 3, 4, 5]],
        "hidden": np.ones((1, 6, 2), np.float32),
        "axes": np.array([0, 1]),
        "no_steps": np.array(0, np.int32),
        "scale": np.array(2, np.float32),
        "quantised": np.ones((2, 2), np.int8),
    }
    nodes = [
        helper.make_node("GRU", ["x", name, "hidden"], [f"y_{name}"], hidden_size=2)
        for name in ("identity", "reordered", "learnt")
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    found = initializers(helper.make_graph(nodes, "made", [], [], tensors))
    assert [tensor.name for tensor in found.identities] == ["identity", "reordered"]
    assert [tensor.name for tensor in found.constants] == ["axes", "no_steps"]
    assert [tensor.name for tensor in found.parameters] == ["learnt", "hidden", "scale", "quantised"]

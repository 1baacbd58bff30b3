"""A streaming model small enough to know by heart, and many clips for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.manifest import Manifest, State
from tests.service import onnx_models

HEIGHT, WIDTH = 8, 8


def running_sums(name: str = "sums", version: str = "1", *, scale: float = 1.0) -> tuple[Manifest, onnx.ModelProto]:
    """`a` sums up each frame's red, `b` its green; logits are [scale a, scale b, 0].

    The two states have one shape, and their outputs go by other names in another order than their inputs, so that a
    mix-up of the two is seen in the numbers only. Clips of a batch go on at their own pace.
    """
    about = onnx_models.manifest(name=name, version=version, labels=("a", "b", "c"), height=HEIGHT, width=WIDTH)
    states = (
        State(input="a", output="z_next", dtype="float32", shape=(1,)),
        State(input="b", output="y_next", dtype="float32", shape=(1,)),
    )
    about = about.model_copy(update={"states": states})
    node = helper.make_node
    constants = {
        "one": np.int64(1),
        "zero": np.int64(0),
        "last": np.array([-1], np.int64),
        "spatial": np.array([2, 3], np.int64),
        "axis_1": np.array([1], np.int64),
        "scale": np.float32(scale / 255),
        "red": np.array([0], np.int64),
        "green": np.array([1], np.int64),
    }
    nodes = [
        node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels", "spatial"], ["means"], keepdims=0),  # [batch, time, 3]
        node("Mul", ["means", "scale"], ["colours"]),
        node("Shape", ["colours"], ["time"], start=1, end=2),
        node("Squeeze", ["time"], ["steps"]),
        node("Range", ["zero", "steps", "one"], ["numbers"]),
        node("Cast", ["numbers"], ["numbers_32"], to=TensorProto.INT32),
        node("Unsqueeze", ["lengths", "axis_1"], ["lengths_column"]),
        node("Less", ["numbers_32", "lengths_column"], ["counts"]),
        node("Cast", ["counts"], ["weights"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["weights", "last"], ["weights_column"]),
        node("Mul", ["colours", "weights_column"], ["counted"]),
        node("CumSum", ["counted", "one"], ["sums"]),
        node("Gather", ["sums", "red"], ["red_sums"], axis=2),
        node("Gather", ["sums", "green"], ["green_sums"], axis=2),
        node("Unsqueeze", ["a", "axis_1"], ["a_column"]),
        node("Unsqueeze", ["b", "axis_1"], ["b_column"]),
        node("Add", ["red_sums", "a_column"], ["a_over_time"]),
        node("Add", ["green_sums", "b_column"], ["b_over_time"]),
        node("Sub", ["a_over_time", "a_over_time"], ["nothing"]),
        node("Concat", ["a_over_time", "b_over_time", "nothing"], ["logits_over_time"], axis=2),
        node("Gather", ["logits_over_time", "last"], ["ends"], axis=1),
        node("Squeeze", ["ends", "axis_1"], ["logits"]),
        node("Gather", ["logits", "red"], ["z_next"], axis=1),
        node("Gather", ["logits", "green"], ["y_next"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sums",
        [
            value("frames", TensorProto.UINT8, ["batch", "time", HEIGHT, WIDTH, 3]),
            value("lengths", TensorProto.INT32, ["batch"]),
            value("a", TensorProto.FLOAT, ["batch", 1]),
            value("b", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", 3]),
            value("logits_over_time", TensorProto.FLOAT, ["batch", "time", 3]),
            value("z_next", TensorProto.FLOAT, ["batch", 1]),
            value("y_next", TensorProto.FLOAT, ["batch", 1]),
        ],
        [numpy_helper.from_array(np.asarray(given), name) for name, given in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(proto, about.to_metadata())
    return about, proto


def save(folder: Path, name: str = "sums", version: str = "1", *, scale: float = 1.0) -> Path:
    about, proto = running_sums(name, version, scale=scale)
    return onnx_models.save(folder, proto, about)


def clip(seed: int, time: int = 8) -> np.ndarray:
    """uint8 [time, height, width, 3], each frame of another colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (time, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (time, HEIGHT, WIDTH, 3)).copy()


def logits_over_time(frames: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """What the model says of a whole clip, by plain arithmetic.

    Shape: [time, height, width, 3] -> [time, 3].
    """
    sums = np.cumsum(frames.mean((1, 2)) * scale / 255, axis=0)
    return np.stack([sums[:, 0], sums[:, 1], np.zeros(len(sums))], axis=-1)

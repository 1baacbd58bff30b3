"""Small models built by hand, so that what is served can be compared with what the file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.manifest import (
    Architecture,
    Compression,
    Contraction,
    DataSet,
    Manifest,
    Parity,
    Scaling,
)
from service.video.sampling import Sampling

LABELS = ("red", "green", "blue", "dark")


def manifest(
    *,
    name: str = "colours",
    version: str = "1",
    labels: tuple[str, ...] = LABELS,
    num_frames: int = 8,
    height: int = 24,
    width: int = 32,
    task: Literal["single_label", "multi_label"] = "single_label",
    temperature: float = 1.0,
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        labels=labels,
        task=task,
        sampling=Sampling(num_frames=num_frames, height=height, width=width),
        scaling=Scaling(),
        architecture=Architecture(
            cell="gru",
            input_modes=(4, 4),
            output_modes=(2, 2),
            tt_ranks=(1, 2, 1),
            hidden_size=4,
            num_parameters=16,
            compression=Compression(input_to_hidden=1.0, rnn=1.0, model=1.0),
        ),
        contraction=Contraction(groups=(2,), direction="right_to_left", flops_per_frame=1),
        opset=18,
        parity=Parity(max_abs_error=0.0, tolerance=1e-5, sizes=((1, 1),)),
        temperature=temperature,
        data_set=DataSet(name="none"),
        checkpoint_sha256="0" * 64,
        exporter_version="0",
    )


def colours(about: Manifest, *, delay: int = 0) -> onnx.ModelProto:
    """Which colour the clip has: logits are the mean red, green and blue, and a constant for `dark`.

    logits_over_time is the running mean, logits is the running mean at each clip's own last step, so that a clip
    padded to the length of its batch must get what it gets alone.

    Args:
        delay: makes every run slower by that many products of 512 x 512 matrices.
    """
    num_labels = len(about.labels)
    _, height, width, _ = about.sampling.clip_shape
    head = np.zeros((3, num_labels), np.float32)
    head[:3, : min(3, num_labels)] = np.eye(3, min(3, num_labels)) * 8
    bias = np.full(num_labels, 0.0, np.float32)
    bias[-1] = 1.0
    constants = {
        "scale": np.float32(1 / 255),
        "head": head,
        "bias": bias,
        "axis_1": np.array([1], np.int64),
        "one": np.int64(1),
        "zero": np.int64(0),
        "spatial": np.array([2, 3], np.int64),
        "last": np.array([-1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels", "spatial"], ["means"], keepdims=0),
        node("Mul", ["means", "scale"], ["colours"]),
        node("CumSum", ["colours", "one"], ["sums"]),
        node("Shape", ["colours"], ["time"], start=1, end=2),
        node("Squeeze", ["time"], ["steps"]),
        node("Range", ["one", "stop", "one"], ["counts"]),
        node("Cast", ["counts"], ["counts_float"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["counts_float", "last"], ["counts_column"]),
        node("Div", ["sums", "counts_column"], ["running"]),
        node("MatMul", ["running", "head"], ["projected"]),
        node("Add", ["projected", "bias"], ["logits_over_time"]),
        node("Cast", ["lengths"], ["lengths_64"], to=TensorProto.INT64),
        node("Sub", ["lengths_64", "one"], ["ends"]),
        node("Unsqueeze", ["ends", "axis_1"], ["ends_column"]),
        node("GatherND", ["logits_over_time", "ends_column"], ["picked"], batch_dims=1),
    ]
    nodes.insert(6, node("Add", ["steps", "one"], ["stop"]))
    out = "logits"
    if delay:
        constants["big"] = np.full((512, 512), 1 / 512, np.float32)
        # Starts from the data, so that constant folding cannot do the work once and for all.
        nodes.append(node("ReduceMax", ["picked"], ["heat"], keepdims=0))
        nodes.append(node("Mul", ["big", "heat"], ["hot_0"]))
        for i in range(delay):
            nodes.append(node("MatMul", [f"hot_{i}", "big"], [f"hot_{i + 1}"]))
        nodes.append(node("ReduceMean", [f"hot_{delay}"], ["warmth"], keepdims=0))
        constants["nothing"] = np.float32(0)
        nodes.append(node("Mul", ["warmth", "nothing"], ["cold"]))
        nodes.append(node("Add", ["picked", "cold"], [out]))
    else:
        nodes.append(node("Identity", ["picked"], [out]))
    return model(nodes, constants, about, height, width)


def model(
    nodes: list[Any],
    constants: dict[str, Any],
    about: Manifest | None,
    height: int,
    width: int,
    *,
    batch: str | int = "batch",
    time: str | int = "time",
    classes: int | None = None,
    frames_type: int = TensorProto.UINT8,
    frames_name: str = "frames",
) -> onnx.ModelProto:
    classes = classes or (len(about.labels) if about else len(LABELS))
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            helper.make_tensor_value_info(frames_name, frames_type, [batch, time, height, width, 3]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes]),
            helper.make_tensor_value_info("logits_over_time", TensorProto.FLOAT, [batch, time, classes]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if about is not None:
        helper.set_model_props(result, about.to_metadata())
    return result


def save(folder: Path, proto: onnx.ModelProto, about: Manifest) -> Path:
    """Write FOLDER/NAME/VERSION/model.onnx."""
    path = folder / about.name / about.version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))
    return path

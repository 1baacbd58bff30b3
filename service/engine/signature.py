"""What a model file's graph takes and gives, and what its manifest says that it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from service.errors import InvalidModel
from service.manifest import Manifest, MLPManifest, State

Datatype = Literal["UINT8", "INT32", "FP32"]
"""By the names of the Open Inference Protocol."""
DTYPES: dict[Datatype, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
}
ONNX: dict[Datatype, str] = {"UINT8": "tensor(uint8)", "INT32": "tensor(int32)", "FP32": "tensor(float)"}
STATES: dict[str, Datatype] = {"float32": "FP32", "int32": "INT32", "uint8": "UINT8"}


@dataclass(frozen=True)
class Tensor:
    """An input or output; a dimension by its name is dynamic, and tensors that share the name share the size."""

    name: str
    datatype: Datatype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature(manifest: Manifest | MLPManifest) -> Signature:
    """What a file with this manifest must take and give."""
    classes = len(manifest.labels)
    logits = Tensor("logits", "FP32", ("batch", classes))
    if isinstance(manifest, MLPManifest):
        datatype: Datatype = "UINT8" if manifest.reads == "images" else "FP32"
        return Signature((Tensor(manifest.reads, datatype, ("batch", *manifest.input_shape)),), (logits,))
    _, height, width, _ = manifest.sampling.clip_shape
    states: list[tuple[State, Datatype, tuple[int | str, ...]]] = [
        (state, STATES[state.dtype], ("batch", *state.shape)) for state in manifest.states
    ]
    return Signature(
        (
            Tensor("frames", "UINT8", ("batch", "time", height, width, 3)),
            Tensor("lengths", "INT32", ("batch",)),
            *(Tensor(state.input, datatype, shape) for state, datatype, shape in states),
        ),
        (
            logits,
            Tensor("logits_over_time", "FP32", ("batch", "time", classes)),
            *(Tensor(state.output, datatype, shape) for state, datatype, shape in states),
        ),
    )


def check(session: onnxruntime.InferenceSession, expected: Signature, path: Path) -> None:
    """The graph may give more than it must, and leave a size dynamic that its manifest fixes.

    Raises:
        InvalidModel: says what was expected and what came.
    """
    wanted = {tensor.name for tensor in expected.outputs}
    outputs = [node for node in session.get_outputs() if node.name in wanted]
    for kind, tensors, found in (
        ("inputs", expected.inputs, session.get_inputs()),
        ("outputs", expected.outputs, outputs),
    ):
        came = {node.name: (node.type, tuple(node.shape)) for node in found}
        asked = {tensor.name: (ONNX[tensor.datatype], tensor.shape) for tensor in tensors}
        if came.keys() != asked.keys() or not all(_fits(*came[name], *asked[name]) for name in asked):
            dynamic = {
                name: (type_, tuple("dynamic" if isinstance(d, str) else d for d in shape))
                for name, (type_, shape) in asked.items()
            }
            raise InvalidModel(f"{path}: expected {kind} {_spell(dynamic)}, got {_spell(came)}")


def zeros(tensors: Iterable[Tensor], **sizes: int) -> dict[str, np.ndarray]:
    """Zeros for each tensor, its dynamic dimensions of these sizes."""
    return {
        tensor.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in tensor.shape], DTYPES[tensor.datatype])
        for tensor in tensors
    }


def _fits(type_: str, shape: tuple, expected_type: str, expected: tuple) -> bool:
    return (
        type_ == expected_type
        and len(shape) == len(expected)
        and all(
            not isinstance(d, int) if isinstance(e, str) else d == e or not isinstance(d, int)
            for d, e in zip(shape, expected, strict=True)
        )
    )


def _spell(tensors: dict[str, tuple[str, tuple]]) -> str:
    return (
        ", ".join(f"{name} {type_}[{', '.join(map(str, shape))}]" for name, (type_, shape) in tensors.items())
        or "nothing"
    )

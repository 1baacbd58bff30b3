"""A graph as the bytes of an ONNX file, and the file in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import checker

from exporters.builder import Builder
from service import __version__
from ttmodels.atomic import in_place_of

OPSET = 21
IR_VERSION = 10
"""The oldest that knows OPSET, so that older runtimes open the file too."""


def finished(graph: Builder, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """What was built, between these ends."""
    return ir.Model(
        ir.Graph(
            inputs,
            outputs,
            nodes=graph.tape.nodes,
            initializers=graph.tape.initializers,
            opset_imports={"": OPSET},
            name="ttvideo",
        ),
        ir_version=IR_VERSION,
        producer_name="ttvideo",
        producer_version=__version__,
    )


def serialize(model: ir.Model) -> bytes:
    """As bytes, checked."""
    proto: onnx.ModelProto = ir.to_proto(model)
    checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def write(path: Path, data: bytes) -> None:
    """Put a whole file in the place of `path`, or nothing.

    Raises:
        OSError: a full disk, a folder without rights; names `path`.
    """
    try:
        with in_place_of(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror}") from error

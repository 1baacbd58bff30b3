"""Tensors of the Open Inference Protocol: in JSON, or as raw little-endian bytes behind it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from service.engine.model import Model
from service.engine.signature import DTYPES, Tensor
from service.errors import InvalidInference
from service.routes.v2.body import read_json
from service.routes.v2.schemas import InferenceRequest, RequestTensor, ResponseTensor

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Of a request: JSON is read in one go, and everybody waits for it; binary tensors are not."""


def parse(body: bytearray, json_length: str | None) -> tuple[InferenceRequest, memoryview]:
    """The head of a request, and the bytes behind it.

    Args:
        json_length: the header Inference-Header-Content-Length; all of the body is JSON without it.

    Raises:
        InvalidInference.
    """
    length = len(body)
    if json_length is not None:
        if not json_length.isdecimal() or len(json_length) > len(str(length)) or int(json_length) > length:
            raise InvalidInference(
                f"Inference-Header-Content-Length: expected at most the body's {length} bytes, got {json_length}"
            )
        length = int(json_length)
    if length > MAX_JSON_BYTES:
        raise InvalidInference(
            f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {length}; send large tensors as binary data"
        )
    return read_json(body[:length], InferenceRequest), memoryview(body)[length:]


def decode(request: InferenceRequest, binary: memoryview, model: Model, in_sequence: bool) -> dict[str, np.ndarray]:
    """The model's inputs. `lengths` that are left out are those of all frames; states may be left out together.

    Args:
        in_sequence: the service keeps the state, and the request holds one piece.

    Raises:
        InvalidInference: says what was expected and what came.
    """
    states = model.initial_state.keys()
    expected = {tensor.name: tensor for tensor in model.inputs if not (in_sequence and tensor.name in states)}
    given: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for tensor in request.inputs:
        if tensor.name not in expected:
            raise InvalidInference(f"inputs: expected {' and '.join(expected)}, got {tensor.name}")
        if tensor.name in given:
            raise InvalidInference(f"{tensor.name}: expected once, got it again")
        if len(expected[tensor.name].shape) == 1 and tensor.shape[1:] == [1]:  # as the metadata has it
            tensor = tensor.model_copy(update={"shape": tensor.shape[:1]})
        _check(tensor, expected[tensor.name], sizes)
        given[tensor.name], binary = _values(tensor, expected[tensor.name], binary)
    if len(binary):
        raise InvalidInference(f"expected no more bytes behind the tensors, got {len(binary)}")
    max_batch = 1 if in_sequence else model.max_batch
    if sizes.get("batch", 1) > max_batch:
        why = ", since it is one piece of one sequence" if in_sequence else ""
        raise InvalidInference(f"expected a batch of at most {max_batch}{why}, got {sizes['batch']}")
    if "lengths" not in given and "frames" in given:
        given["lengths"] = np.full(sizes["batch"], sizes["time"], np.int32)
    optional = states if states.isdisjoint(given) else set()
    if missing := [name for name in expected if name not in given and name not in optional]:
        raise InvalidInference(f"inputs: expected {', '.join(missing)} too, got {', '.join(given) or 'none'}")
    if "lengths" in given:
        shortest = 0 if model.states else 1
        if not ((given["lengths"] >= shortest) & (given["lengths"] <= sizes["time"])).all():
            raise InvalidInference(
                f"lengths: expected {shortest} to {sizes['time']}, the frames' time, got {given['lengths'].tolist()}"
            )
    return given


def encode(name: str, datatype: str, values: np.ndarray, *, binary: bool) -> tuple[ResponseTensor, bytes]:
    """An output, and the bytes of it that follow the JSON.

    Args:
        values: numbers; str where `datatype` is BYTES.

    Raises:
        InvalidInference: numbers that JSON does not have.
    """
    shape = list(values.shape)
    if binary:
        if datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(one)) + one for one in (str(v).encode() for v in values.flat))
        else:
            raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        size = {"binary_data_size": len(raw)}
        return ResponseTensor(name=name, datatype=datatype, shape=shape, parameters=size), raw
    if datatype != "BYTES" and not np.isfinite(values).all():
        raise InvalidInference(f"{name}: expected finite numbers, which JSON can hold, got others; ask for binary data")
    return ResponseTensor(name=name, datatype=datatype, shape=shape, data=values.ravel().tolist()), b""


def _check(tensor: RequestTensor, expected: Tensor, sizes: dict[str, int]) -> None:
    """Datatype and shape; what is found for dynamic dimensions goes into `sizes`."""
    if tensor.datatype != expected.datatype:
        raise InvalidInference(f"{tensor.name}: expected {expected.datatype}, got {tensor.datatype}")
    wanted = [sizes.get(d, d) if isinstance(d, str) else d for d in expected.shape]
    fits = len(wanted) == len(tensor.shape) and all(
        isinstance(w, str) or w == d for w, d in zip(wanted, tensor.shape, strict=True)
    )
    if not fits:
        raise InvalidInference(f"{tensor.name}: expected [{', '.join(map(str, wanted))}], got {tensor.shape}")
    sizes.update((w, d) for w, d in zip(wanted, tensor.shape, strict=True) if isinstance(w, str))


def _values(tensor: RequestTensor, expected: Tensor, binary: memoryview) -> tuple[np.ndarray, memoryview]:
    """The numbers, and what is left of the bytes behind the JSON."""
    name, dtype, count = tensor.name, DTYPES[expected.datatype], int(np.prod(tensor.shape, dtype=object))
    if "shared_memory_region" in tensor.parameters:
        raise InvalidInference(f"{name}: expected its data in the request, got shared memory, which is not offered")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None:
            raise InvalidInference(f"{name}: expected data or the parameter binary_data_size, got neither")
        return _from_json(name, tensor.data, dtype, count).reshape(tensor.shape), binary
    if tensor.data is not None:
        raise InvalidInference(f"{name}: expected data or the parameter binary_data_size, got both")
    wanted = count * dtype.itemsize
    if size != wanted or len(binary) < wanted:
        raise InvalidInference(
            f"{name}: expected {wanted} bytes for {tensor.shape}, got {size!r} announced and {len(binary)} left"
        )
    return np.frombuffer(binary[:wanted], dtype).reshape(tensor.shape), binary[wanted:]


def _from_json(name: str, data: Any, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        found = np.asarray(data)
    except ValueError as error:
        raise InvalidInference(f"{name}: expected one list of numbers, or rows of one length, got others") from error
    if found.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        kind = "whole numbers" if dtype.kind in "iu" else "numbers"
        raise InvalidInference(f"{name}: expected {kind}, got {found.dtype.name} among them")
    if found.size != count:
        raise InvalidInference(f"{name}: expected {count} numbers, got {found.size}")
    if dtype.kind in "iu" and (found.min() < np.iinfo(dtype).min or found.max() > np.iinfo(dtype).max):
        raise InvalidInference(f"{name}: expected numbers that fit {dtype.name}, got {found.min()} to {found.max()}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        return found.astype(dtype)

"""A model on CUDA: how its session is opened, and runs on buffers that stay where they are."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from service.engine.provider import load_library
from service.engine.signature import DTYPES, Signature, Tensor, zeros
from service.settings import Graphs

_PORTABLE = 1
"""CU_MEMHOSTREGISTER_PORTABLE: page-locked for every context."""


@dataclass(frozen=True)
class Device:
    """Which GPU, and how much of it.

    Args:
        memory_bytes: what a model's arena may take; all that is free without it.
        graphs: whether runs are recorded as CUDA graphs: `auto` where ONNX Runtime can, `on` or the file is refused.
    """

    id: int = 0
    memory_bytes: int | None = None
    graphs: Graphs = "auto"

    def options(self, *, graphs: bool) -> dict[str, Any]:
        """Of ONNX Runtime's CUDA provider."""
        bound = {} if self.memory_bytes is None else {"gpu_mem_limit": self.memory_bytes}
        return {
            "device_id": self.id,
            # The arena takes what is asked for, and not the next power of two.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": int(graphs),
            **bound,
        }


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The sizes that are run: powers of two, and the largest batch."""
    return (*(1 << i for i in range((max_batch - 1).bit_length())), max_batch)


class Bound:
    """Runs of a session in the batch sizes in use, each on device buffers of its own that are made once.

    Inputs go from page-locked memory into them; outputs come back from them. A batch is filled up to the next size with
    whatever its buffers held before, and the rows beyond it are cut off again. As the addresses of a size never change,
    its run may be recorded as a CUDA graph. A batch of any other shape is run plainly.

    Args:
        sizes: of the batch, ascending.
        time: the steps of a clip.
        graphs: whether the session records them.
        device: by ONNX Runtime's name; the tests take `cpu`.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        signature: Signature,
        *,
        sizes: Sequence[int],
        time: int,
        device_id: int = 0,
        graphs: bool = False,
        device: str = "cuda",
    ) -> None:
        self._session, self._signature, self._device, self._device_id = session, signature, device, device_id
        self._sizes, self._time, self._graphs = tuple(sizes), time, graphs
        self._host = zeros(signature.inputs, batch=max(sizes), time=time)
        for name, values in self._host.items():
            if name == "lengths":  # rows that nobody asked for are run too
                values.fill(time)
            if device == "cuda":
                lock_pages(values, device_id)
        self._buffers: dict[int, _Buffers] = {}
        self._running = threading.Lock()

    def room(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Page-locked memory for frames of this shape, where that is a shape in use. Good until the next call."""
        frames = self._host.get("frames")
        if frames is None or shape[1:] != frames.shape[1:] or shape[0] > len(frames):
            return None
        return frames[: shape[0]]

    def run(self, inputs: Mapping[str, np.ndarray], options: onnxruntime.RunOptions) -> dict[str, np.ndarray]:
        """Every output of the signature.

        Raises:
            Exception: of ONNX Runtime.
        """
        names = [tensor.name for tensor in self._signature.outputs]
        batch = len(next(iter(inputs.values())))
        fits = all(values.shape[1:] == self._host[name].shape[1:] for name, values in inputs.items())
        if not fits or batch > self._sizes[-1]:
            outputs = self._session.run(names, dict(inputs), self._recorded(options, -1))
            return dict(zip(names, map(np.asarray, outputs), strict=True))
        size = next(size for size in self._sizes if size >= batch)
        with self._running:
            buffers = self._buffers.get(size) or self._make(size)
            for name, values in inputs.items():
                host = self._host[name]
                if not np.may_share_memory(host, values):
                    host[:batch] = values
                buffers.inputs[name].update_inplace(host[:size])
            self._session.run_with_iobinding(buffers.binding, self._recorded(options, self._sizes.index(size)))
            return {name: np.array(buffers.outputs[name].numpy()[:batch]) for name in names}

    def _make(self, size: int) -> _Buffers:
        inputs = {tensor.name: self._on_device(tensor, size) for tensor in self._signature.inputs}
        outputs = {tensor.name: self._on_device(tensor, size) for tensor in self._signature.outputs}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        self._buffers[size] = _Buffers(inputs, outputs, binding)
        return self._buffers[size]

    def _on_device(self, tensor: Tensor, size: int) -> onnxruntime.OrtValue:
        sizes = {"batch": size, "time": self._time}
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, DTYPES[tensor.datatype].type, self._device, self._device_id
        )

    def _recorded(self, options: onnxruntime.RunOptions, graph: int) -> onnxruntime.RunOptions:
        """The run as the graph of this number; -1 is none."""
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


@dataclass(frozen=True)
class _Buffers:
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, onnxruntime.OrtValue]
    binding: onnxruntime.IOBinding


def lock_pages(values: np.ndarray, device_id: int) -> bool:
    """Keep an array's memory from being moved, until it is freed, so that a GPU copies from it by itself. Whether the
    driver did so; without it copies are slower and as right."""
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    address = ctypes.c_void_p(values.ctypes.data)
    done: bool = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), device_id) == 0
        # The context that ONNX Runtime works in too.
        and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        and driver.cuCtxSetCurrent(context) == 0
        and driver.cuMemHostRegister_v2(address, ctypes.c_size_t(values.nbytes), _PORTABLE) == 0
    )
    if done:
        weakref.finalize(values, driver.cuMemHostUnregister, address)
    return done

"""Where models run: CUDA when it really works, else the CPU, and the reason.

`onnxruntime.get_available_providers()` lists CUDA whether or not its libraries are there, and a session that cannot
have it falls back without a word. So everything CUDA needs is tried first, and the session is asked afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime

from service.errors import ProviderUnavailable

INSTALL = (
    "pip install -c deploy/constraints.txt '.[gpu]' (in a checkout), "
    "or pip install 'onnxruntime-gpu[cuda,cudnn]', with no onnxruntime beside it"
)
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass(frozen=True)
class Choice:
    """name: the provider; reason: why it is not CUDA, where CUDA was not ruled out by the asker."""

    name: Literal["cpu", "cuda"]
    reason: str | None = None


def choose(asked: Literal["auto", "cpu", "cuda"], device_id: int = 0) -> Choice:
    """Choose before any session is made.

    Raises:
        ProviderUnavailable: `cuda` was asked for and cannot be had; says what is missing and what to install.
    """
    if asked == "cpu":
        return Choice("cpu")
    fault = cuda_fault(device_id)
    if fault is None:
        return Choice("cuda")
    if asked == "cuda":
        raise ProviderUnavailable(f"CUDA was asked for and cannot be used: {fault}")
    return Choice("cpu", fault)


def cuda_fault(device_id: int = 0) -> str | None:
    """What keeps ONNX Runtime from CUDA on this machine, or None.

    The provider's own library is left alone: loaded before ONNX Runtime introduces itself to it, it crashes.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return f"this build of onnxruntime ({onnxruntime.__version__}) has no CUDA provider; {INSTALL}"
    missing = _missing_libraries()
    driver = _driver_fault(device_id)
    faults = [f"{', '.join(missing)} cannot be loaded; {INSTALL}"] if missing else []
    return "; ".join([driver, *faults] if driver else faults) or None


def load_library(name: str) -> ctypes.CDLL:
    """dlopen; OSError where it cannot be loaded."""
    return ctypes.CDLL(name)


def _missing_libraries() -> list[str]:
    # It loads what pip's CUDA wheels bring, and prints, a line each, what it could not find.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    missing = [Path(name).name for name in re.findall(r"Failed to load (\S+):", said.getvalue())]
    try:
        load_library("libcudnn.so.9")
    except OSError:
        missing.append("libcudnn.so.9")
    return list(dict.fromkeys(missing))


def _driver_fault(device_id: int) -> str | None:
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return "libcuda.so.1 cannot be loaded: the NVIDIA driver is not installed here"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit gives {status})"
    count = ctypes.c_int()
    if status := driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver cannot count its devices (cuDeviceGetCount gives {status})"
    if device_id >= count.value:
        return f"expected CUDA device {device_id}, the driver has {count.value}"
    return None

"""Timing model files in ONNX Runtime, one beside the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from service.engine.provider import CPU, CUDA
from service.engine.session import session_options
from service.engine.signature import DTYPES, ONNX

RUNS_A_TURN = 5
"""Timed runs of a contender before the next one's turn; one more before them fills its caches."""

_DTYPES = {ONNX[name]: dtype for name, dtype in DTYPES.items()}


def open_session(
    source: Path | bytes, threads: int, device: Literal["cpu", "cuda"] = "cpu"
) -> onnxruntime.InferenceSession:
    """A session as the service has it.

    Raises:
        ValueError: ONNX Runtime does not load it.
    """
    providers = [CUDA, CPU] if device == "cuda" else [CPU]
    try:
        return onnxruntime.InferenceSession(source, session_options(threads), providers=providers, enable_fallback=0)
    except Exception as error:  # it has a class of its own for every code
        which = source if isinstance(source, Path) else "a graph"
        reason = " ".join(str(error).split())
        raise ValueError(f"{which}: ONNX Runtime {onnxruntime.__version__} does not load it: {reason}") from error


def feeds(session: onnxruntime.InferenceSession, frames: np.ndarray) -> dict[str, np.ndarray]:
    """The frames, their full lengths, and zeros for the state of a streaming graph."""
    batch, length = frames.shape[:2]
    fed = {"frames": frames, "lengths": np.full(batch, length, np.int32)}
    for state in session.get_inputs()[2:]:
        shape = [size if isinstance(size, int) else batch for size in state.shape]
        fed[state.name] = np.zeros(shape, _DTYPES[state.type])
    return fed


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call; every round gives each a turn, whose first run does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(RUNS_A_TURN):
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
    return taken

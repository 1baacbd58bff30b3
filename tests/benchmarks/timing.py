"""How the benchmarks take their figures: contenders in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

SLOW_S = 2.0
"""A call that takes longer is repeated less often."""
SLOW_RUNS = 5


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """Of one call, until the device has done it."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(
    calls: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu", hopeless: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each call, `runs` rounds of all of them one after the other, after one round to warm up.

    A call slower than SLOW_S takes part in SLOW_RUNS rounds only. One that is `hopeless` times slower than the fastest
    in both the warm-up and the first round drops out after that: it is in the answer with its one time.
    """
    warm = {name: seconds(call, device) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    stride = max(1, runs // SLOW_RUNS)
    for number in range(runs):
        for name, call in calls.items():
            if warm[name] > SLOW_S and number % stride:
                continue
            taken[name].append(seconds(call, device))
        if number == 0:
            both = {name: min(warm[name], taken[name][0]) for name in calls}
            calls = {name: call for name, call in calls.items() if both[name] <= hopeless * min(both.values())}
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in taken.items()}


def machine_line(device: str = "cpu") -> str:
    """What the figures were taken on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{model}, {cores} cores, {torch.get_num_threads()} threads{load}, torch {torch.__version__}"


# ---- peak memory


def peak_growth(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that a call adds at its peak to what the process held before it, results included.

    On the CPU this is the growth of the resident set, so buffers of the libraries below torch count too; the process
    should be a fresh one, started by `fresh_process`. On CUDA it is what torch's allocator handed out.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew: proc(5)
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def fresh_process(arguments: Iterable[str]) -> str:
    """What `python -m ARGUMENTS` prints. Its freed blocks go back to the system at once, so that they are not counted
    as held, nor hide what comes after them.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

"""How many processor cores this process may really use, and who gets them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CorePlan:
    """Who works on the cores at the same time.

    Decoding is nearly all of the work, so there is a decoder process for each core, and one more: while one hands over
    its clip and gets the next, its core has work. Models run beside the decoders: a run has half of the cores, and no
    more runs go on at once, whatever their models, than the cores have threads for. Threads do not spin while they
    wait. What a quota has beyond whole cores is left to the event loop.
    """

    cores: float
    """By affinity and quota; a fraction where the quota is one."""
    decode_workers: int
    """Decoder processes."""
    model_threads: int
    """Of one run of a model."""
    model_runs: int
    """Runs at the same time, of all models together."""

    def __str__(self) -> str:
        return (
            f"{self.cores:g} cores; decoder processes: {self.decode_workers}; "
            f"runs of models at once: {self.model_runs}; threads of a run: {self.model_threads}"
        )


def plan_cores(
    decode_workers: int | None = None, model_threads: int | None = None, *, cores: float | None = None
) -> CorePlan:
    """The plan for this machine, or for so many `cores`; numbers that are given stand."""
    cores = available_cores() if cores is None else cores
    whole = max(1, math.floor(cores))
    threads = model_threads or max(1, whole // 2)
    return CorePlan(cores, decode_workers or whole + 1, threads, max(1, whole // threads))


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """`available_cores`, whole ones, at least 1."""
    return max(1, math.floor(available_cores(proc, cgroups)))


def available_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Cores by affinity, cut by the cgroup's quota (v2 and v1).

    ONNX Runtime and the decoders are sized by it: left alone they count the host's cores and fight over a quota.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _quota(proc, cgroups))


def _quota(proc: Path, cgroups: Path) -> float:
    """The tightest quota, in cores, of this process's cgroup and those above it."""
    quotas = [math.inf]
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = cgroups
        elif "cpu" in controllers.split(","):
            root = cgroups / "cpu"
        else:
            continue
        folder = root / path.lstrip("/")
        for level in (folder, *folder.parents):
            quotas.append(_quota_v1(level) if controllers else _quota_v2(level))
            if level == root:
                break
    return min(quotas)


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf

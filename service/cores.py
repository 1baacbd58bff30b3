"""How many processor cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(proc: Path = Path("/proc/self/cgroup"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores by affinity, cut by the cgroup's quota (v2 and v1), whole ones, at least 1.

    ONNX Runtime and the decoders are sized by it: left alone they count the host's cores and fight over a quota.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, _quota(proc, cgroups))))


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

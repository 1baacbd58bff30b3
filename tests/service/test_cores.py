"""Usable cores, by affinity and by the quota of either kind of cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cores import usable_cores

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc = tmp_path / "membership"
    proc.write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, tmp_path / "fs"


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {}),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}),
        ("0::/a\n", {"a/cpu.max": "nonsense\n"}),
    ],
)
def test_without_a_quota_affinity_decides(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert usable_cores(*cgroup(tmp_path, membership, files)) == AFFINITY


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}),
        ("0::/a\n", {"a/cpu.max": "20000 100000\n"}),
        ("1:name=systemd:/\n3:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_the_tightest_quota_decides_in_whole_cores_and_at_least_one(
    tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    assert usable_cores(*cgroup(tmp_path, membership, files)) == 1


def test_without_cgroups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path) == AFFINITY

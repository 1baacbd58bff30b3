"""Usable cores, by affinity and by the quota of either kind of cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cores import CorePlan, available_cores, plan_cores, usable_cores

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


def test_a_quota_may_be_a_fraction(tmp_path: Path) -> None:
    assert available_cores(*cgroup(tmp_path, "0::/a\n", {"a/cpu.max": "75000 100000\n"})) == 0.75


@pytest.mark.parametrize(
    ("cores", "plan"),
    [
        (0.5, CorePlan(0.5, decode_workers=2, model_threads=1, model_runs=1)),
        (1.9, CorePlan(1.9, decode_workers=2, model_threads=1, model_runs=1)),
        (2, CorePlan(2, decode_workers=3, model_threads=1, model_runs=2)),
        (3.5, CorePlan(3.5, decode_workers=4, model_threads=1, model_runs=3)),
        (16, CorePlan(16, decode_workers=17, model_threads=8, model_runs=2)),
    ],
)
def test_decoders_and_runs_of_models_are_planned_together(cores: float, plan: CorePlan) -> None:
    assert plan_cores(cores=cores) == plan
    assert plan.model_threads * plan.model_runs <= max(1, cores)


def test_what_is_given_stands_and_the_rest_follows() -> None:
    assert plan_cores(3, cores=2) == CorePlan(2, 3, 1, 2)
    assert plan_cores(model_threads=2, cores=2) == CorePlan(2, 3, 2, 1)
    assert plan_cores(model_threads=8, cores=2) == CorePlan(2, 3, 8, 1)
    assert str(plan_cores(1, cores=2.5)) == (
        "2.5 cores; decoder processes: 1; runs of models at once: 2; threads of a run: 1"
    )


def test_the_plan_of_this_machine() -> None:
    assert plan_cores().cores == available_cores()
    assert plan_cores().decode_workers == usable_cores() + 1

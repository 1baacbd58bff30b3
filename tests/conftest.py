"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

REAL_CLIPS = Path(__file__).parents[2] / "shared" / "clips"
"""Real videos beside the checkout; they keep their sources' rights and are no part of the project."""


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """It is heard, here and in the processes that tests start, also where a shell that runs the tests in its background
    has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `real_clip` runs once on each; without them it is skipped, but not in CI."""
    if "real_clip" not in metafunc.fixturenames:
        return
    clips = sorted(p for p in REAL_CLIPS.glob("*") if p.suffix in {".mp4", ".avi", ".mpeg"})
    if clips:
        metafunc.parametrize("real_clip", clips, ids=[clip.name[:24] for clip in clips])
    elif os.environ.get("CI"):
        raise FileNotFoundError(f"expected real clips in {REAL_CLIPS}")
    else:
        reason = pytest.mark.skip(reason=f"no real clips in {REAL_CLIPS}")
        metafunc.parametrize("real_clip", [pytest.param(None, marks=reason)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped without CUDA."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

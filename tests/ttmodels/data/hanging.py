"""Work for decoder processes that hangs. There is no torch in this module, so that they start fast."""

from __future__ import annotations

import time
from pathlib import Path

from ttmodels.data import decoded
from ttmodels.data.decoded import Facts

LIMIT_S = 2.0
"""Longer than a busy machine keeps a process waiting that has nothing to do."""


def hang_on_the_third(path: Path, file: Path | None) -> Facts | str:
    """Of the jobs 0, 1, 2, and so on; the name of each other one."""
    with decoded._end_after(LIMIT_S):
        time.sleep(3600 if path.name == "2" else 0)
    return path.name

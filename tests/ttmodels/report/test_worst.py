"""Strips of frames."""

from __future__ import annotations

import numpy as np
import pytest

from ttmodels.report.worst import GAP, strip


@pytest.mark.parametrize(
    ("time", "shown"), [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (15, list(range(0, 15, 2)))]
)
def test_a_strip_spreads_frames_over_the_clip(time: int, shown: list[int]) -> None:
    frames = np.broadcast_to(np.arange(time, dtype=np.uint8)[:, None, None, None], (time, 4, 6, 3))
    row = strip(frames)
    assert row.shape == (4, len(shown) * (6 + GAP) - GAP, 3)
    for place, number in enumerate(shown):
        assert (row[:, place * (6 + GAP) : place * (6 + GAP) + 6] == number).all()
    assert (row[:, 6 : 6 + GAP] == 255).all()

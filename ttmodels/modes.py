"""How a size is split into the modes of a Tensor-Train."""

from __future__ import annotations

import functools
import math


@functools.cache
def balanced_modes(size: int, num_modes: int) -> tuple[int, ...]:
    """Split `size` into `num_modes` factors as equal as can be (the least sum), ascending.

    >>> balanced_modes(57600, 4)
    (15, 15, 16, 16)
    """
    if size < 1 or num_modes < 1:
        raise ValueError(f"expected a positive size and at least one mode, got {size} and {num_modes}")
    if num_modes == 1:
        return (size,)
    least = [mode for mode in range(1, size + 1) if mode**num_modes <= size and size % mode == 0]
    return min((tuple(sorted((mode, *balanced_modes(size // mode, num_modes - 1)))) for mode in least), key=sum)


def frame_modes(height: int, width: int, channels: int = 3) -> tuple[int, int, int, int]:
    """Modes of a frame [height, width, channels] in row-major order: two for the lines, two for the columns.

    The channel joins the finest column mode, so that a cut in the middle of the train parts lines from columns.

    >>> frame_modes(120, 160)
    (10, 12, 10, 48)
    """
    lines, columns = balanced_modes(height, 2), balanced_modes(width, 2)
    return lines[0], lines[1], columns[0], columns[1] * channels


def check_modes(modes: tuple[int, ...], size: int, name: str) -> None:
    """Raise ValueError unless `modes` are positive and multiply to `size`."""
    if not modes or any(mode < 1 for mode in modes):
        raise ValueError(f"{name} {modes}: expected positive integers")
    if math.prod(modes) != size:
        raise ValueError(f"{name} {modes} multiply to {math.prod(modes)}, expected {size}")

import math

import pytest

from ttmodels.modes import balanced_modes, check_modes, frame_modes


@pytest.mark.parametrize(
    ("size", "num_modes", "modes"), [(57600, 4, (15, 15, 16, 16)), (64, 3, (4, 4, 4)), (7, 2, (1, 7))]
)
def test_modes_are_balanced(size: int, num_modes: int, modes: tuple[int, ...]) -> None:
    assert balanced_modes(size, num_modes) == modes


def test_frame_modes_part_lines_from_columns() -> None:
    modes = frame_modes(120, 160)
    assert math.prod(modes[:2]) == 120
    assert math.prod(modes[2:]) == 160 * 3
    assert modes[-1] % 3 == 0


def test_wrong_modes_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"input_modes \(4, 8\) multiply to 32, expected 57600"):
        check_modes((4, 8), 57600, "input_modes")
    with pytest.raises(ValueError, match="at least one mode"):
        balanced_modes(8, 0)

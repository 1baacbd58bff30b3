"""What passes for the same."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
import torch

from exporters.graph import build
from exporters.verify import ParityError, difference, verify
from tests.made import random_classifier, tiny_config
from ttmodels.contraction import Plan


@pytest.mark.parametrize("size", [0.01, 1.0, 5000.0])
def test_the_tolerance_grows_with_the_values(size: float) -> None:
    theirs = np.array([[-size, size / 2]])
    bound = 0.001 * max(1.0, size)
    assert difference(theirs + 0.9 * bound, theirs, 0.001, "here") == pytest.approx(0.9 * bound)
    with pytest.raises(ParityError, match=r"here differs from torch by .* values up to .*--tolerance 0.001"):
        difference(theirs + 1.1 * bound, theirs, 0.001, "here")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_never_the_same(value: float) -> None:
    for mine, theirs in (([value], [value]), ([0.0], [value]), ([value], [0.0])):
        with pytest.raises(ParityError, match="differs from torch"):
            difference(np.array(mine), np.array(theirs), 0.001, "here")


def test_a_softplus_lstm_of_large_logits_is_the_same() -> None:
    """Its state grows without bound, and the rounding of its logits with it."""
    model = random_classifier(tiny_config(cell="lstm", activation="softplus"))
    with torch.no_grad():
        model.head.weight *= 1000
    found = verify(model, ir.to_proto(build(model, Plan((2, 2)))).SerializeToString(), source="made")
    assert found.largest_logit is not None
    assert found.largest_logit > 1000
    assert found.tolerance < found.max_abs_error < found.tolerance * found.largest_logit

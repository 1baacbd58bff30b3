"""What an export says of itself, where it has something to explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.report import parity, report
from service.manifest import Contraction, Manifest, Parity, PrecisionReport, TimedPlan
from tests.service.onnx_models import manifest

FIRST, SECOND = ((2, 2), "right_to_left"), ((4,), "right_to_left")


def said(tmp_path: Path, **changes: Any) -> str:
    (tmp_path / "m.onnx").write_bytes(b"")
    told: Manifest = manifest().model_copy(update=changes)
    return report(told, tmp_path / "m.onnx")


def timed(chosen: tuple[tuple[int, ...], str]) -> Contraction:
    plans = [
        TimedPlan(groups=groups, direction=direction, milliseconds=ms)  # type: ignore[arg-type]
        for (groups, direction), ms in ((FIRST, 1.0), (SECOND, 1.02))
    ]
    groups, direction = chosen
    return Contraction(groups=groups, direction=direction, flops_per_frame=1, measured=tuple(plans))  # type: ignore[arg-type]


def test_a_plan_that_is_not_the_fastest_is_explained(tmp_path: Path) -> None:
    line = "within 3% of the fastest, which is noise: the cost model's first of those"
    assert line in said(tmp_path, contraction=timed(SECOND))
    assert line not in said(tmp_path, contraction=timed(FIRST))
    assert line not in said(tmp_path)  # nothing was measured


@pytest.mark.parametrize(("target", "noted"), [("cpu", True), ("cuda", False)])
def test_fp16_for_a_cpu_is_told_to_be_of_no_use(target: str, noted: bool, tmp_path: Path) -> None:
    contraction = timed(FIRST).model_copy(update={"target": target})
    text = said(tmp_path, precision="fp16", contraction=contraction)
    assert ("fp16 is for GPUs (--target cuda): a CPU computes it in fp32, no faster" in text) == noted
    assert "fp16 is for" not in said(tmp_path, precision="int8", contraction=contraction)


def test_parity_says_whose_weights_torch_has_and_of_what_the_tolerance_is_a_share(tmp_path: Path) -> None:
    found = Parity(max_abs_error=0.02, tolerance=1e-3, largest_logit=31.0, sizes=((1, 1),))
    assert parity(found, "the batch").endswith(
        "to torch 0.02 (at most 0.001 times the largest logit, 31) at 1 sizes of the batch"
    )
    small = found.model_copy(update={"largest_logit": 0.5})
    assert "(at most 0.001) at" in parity(small, "the batch")
    assert "to torch with the weights as rounded to int8 0" in said(tmp_path, precision="int8")
    assert "to torch 0 (" in said(tmp_path)


def test_what_rounding_changes_is_said_of_logits_too(tmp_path: Path) -> None:
    compared = PrecisionReport(
        clips="here",
        num_clips=5,
        label_agreement=1.0,
        max_probability_difference=0.01,
        max_logit_difference=0.25,
    )
    text = said(tmp_path, precision="int8", precision_report=compared)
    assert "probabilities differ by at most 0.01, logits by 0.25\n" in text

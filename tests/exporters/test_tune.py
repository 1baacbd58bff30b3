"""Which plan is chosen, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import pytest

from exporters import tune
from exporters.graph import build
from service.cores import plan_cores
from service.manifest import Scaling
from service.video import Sampling
from tests.made import random_classifier, tiny_config
from ttmodels import contraction
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan

PLANS = [Plan((2, 2)), Plan((1, 1, 2)), Plan((4,)), Plan((1, 1, 1, 1))]


@pytest.fixture(scope="module")
def model() -> ClipClassifier:
    return random_classifier(tiny_config())


def test_the_cost_model_ranks_all_plans(model: ClipClassifier) -> None:
    ranked = tune.by_cost(model, "fp32", "cpu")
    assert set(ranked) == set(contraction.all_plans(4))
    assert ranked[0] == contraction.choose_plan(model.projection.shape, 6, merged_once=True)
    assert tune.by_cost(model, "fp32", "cuda")[0] == contraction.choose_plan(
        model.projection.shape, 6, merged_once=True, device="cuda"
    )


def test_int8_has_only_plans_that_it_can_take(model: ClipClassifier) -> None:
    ranked = tune.by_cost(model, "int8", "cpu")
    assert len(ranked) == 8
    assert {plan.direction for plan in ranked} == {"right_to_left"}


def test_no_plan_at_all_is_said(model: ClipClassifier) -> None:
    """One scale a channel, and only the whole frame a multiple of three, which is too large for 32 bits."""
    sampling, scaling = Sampling(num_frames=2, height=250, width=200), Scaling(std=(0.5, 0.25, 1.0))
    modes: dict[str, Any] = {"input_modes": (3, 250, 200), "output_modes": (2, 2, 2), "tt_ranks": (1, 2, 2, 1)}
    large = ClipClassifier(tiny_config(**modes, sampling=sampling, scaling=scaling))
    assert tune.by_cost(large, "fp16", "cpu")
    with pytest.raises(ValueError, match=r"int8: expected the last input modes, of \(3, 250, 200\), to hold"):
        tune.by_cost(large, "int8", "cpu")


def choose(
    model: ClipClassifier, monkeypatch: pytest.MonkeyPatch, milliseconds: Mapping[Plan, float]
) -> tuple[Plan, list[float], list[list[str]]]:
    """The choice among PLANS if they took this long, the times as reported, and what each call measured."""
    asked: list[list[str]] = []
    seconds = {str(plan): 1e-3 * ms for plan, ms in milliseconds.items()}

    def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        asked.append(list(calls))
        for call in calls.values():
            call()  # the graph runs
        return {name: [9.0, seconds[name]] for name in calls}

    monkeypatch.setattr(tune, "in_turns", in_turns)
    plan, times = tune.measured(
        lambda plan: ir.to_proto(build(model, plan)).SerializeToString(), PLANS, model.config.sampling.clip_shape, "cpu"
    )
    assert [(one.groups, one.milliseconds) for one in times] == sorted(
        ((plan.groups, ms) for plan, ms in milliseconds.items()), key=lambda pair: pair[1]
    )
    return plan, [one.milliseconds for one in times], asked


def test_the_fastest_is_chosen(model: ClipClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, times, asked = choose(model, monkeypatch, dict(zip(PLANS, (1.2, 1.0, 5.0, 1.9), strict=True)))
    assert plan == PLANS[1]
    assert times == [1.0, 1.2, 1.9, 5.0]
    # The one that is five times slower was measured once, the others again.
    assert [len(names) for names in asked] == [4, 3]


def test_within_the_noise_the_cost_model_decides(model: ClipClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, _ = choose(model, monkeypatch, dict(zip(PLANS, (1.02, 1.0, 5.0, 1.01), strict=True)))
    assert plan == PLANS[0]


def test_real_times(model: ClipClassifier) -> None:
    plan, times = tune.measured(
        lambda plan: ir.to_proto(build(model, plan, streaming=True)).SerializeToString(),
        PLANS,
        model.config.sampling.clip_shape,
        "cpu",
    )
    assert plan in PLANS
    assert len(times) == 4
    assert all(0 < time.milliseconds < 1000 for time in times)
    assert f"{plan_cores().model_threads} threads" in tune.machine("cpu")

"""The plan that a graph contracts its frames by: ranked by the cost model, and the best few measured.

The cost model's figures are torch's. Over 20 shapes, ranks and precisions its first choice took on average 3 % longer
in ONNX Runtime on the CPU than the best of all plans, at worst a quarter; the best was its first or second in all but
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import torch

from exporters import quantize
from exporters.quantize import Precision
from exporters.recurrence import Target
from exporters.timing import RUNS_A_TURN, feeds, in_turns, open_session
from service.cores import plan_cores
from service.manifest import TimedPlan
from ttmodels import contraction
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan

NUM_MEASURED = 5
"""Plans that are worth a measurement."""
HOPELESS = 2.0
"""Times slower than the fastest, in the first rounds: such a plan is not measured further."""
SECONDS = 0.5
"""For the measurements after the first rounds."""
NOISE = 1.03
"""Times faster that a plan must be than one that the cost model prefers."""


def by_cost(model: ClipClassifier, precision: Precision, target: Target) -> list[Plan]:
    """All plans that the precision can take, for one clip, the best by the cost model first. Behind a backbone the
    train is in fp32.

    Raises:
        ValueError: there is none.
    """
    shape = model.projection.shape
    precision = precision if model.backbone is None else "fp32"
    dtype = torch.float16 if precision == "fp16" and target == "cuda" else torch.float32
    ranked = contraction.ranked_plans(
        shape, model.config.sampling.num_frames, dtype=dtype, device=target, merged_once=True
    )
    plans = [plan for plan in ranked if quantize.fits(plan, shape, model.pixel_scale, precision)]
    if not plans:
        raise ValueError(
            f"{precision}: expected the last input modes, of {shape.input_modes}, to hold the channels' different "
            f"scales in at most {quantize.LARGEST_SUM:,} values"
        )
    return plans


def measured(
    build: Callable[[Plan], bytes], plans: Sequence[Plan], clip_shape: tuple[int, ...], target: Target
) -> tuple[Plan, list[TimedPlan]]:
    """The fastest in ONNX Runtime on `target`, and the times of all, the fastest first.

    Args:
        build: makes a plan's graph.
        plans: the better by the cost model first.
        clip_shape: of the uint8 clip that they take.
    """
    frames = np.random.default_rng(0).integers(0, 256, (1, *clip_shape), np.uint8)
    calls = {}
    for plan in plans:
        session = open_session(build(plan), plan_cores().model_threads, target)
        fed = feeds(session, frames)
        calls[str(plan)] = lambda session=session, fed=fed: session.run(["logits"], fed)
    seconds = _best(calls, 2)
    hopeful = {name: call for name, call in calls.items() if seconds[name] <= HOPELESS * min(seconds.values())}
    a_round = (RUNS_A_TURN + 1) * sum(seconds[name] for name in hopeful)
    again = _best(hopeful, max(2, min(20, int(SECONDS / a_round))))
    seconds |= {name: min(seconds[name], time) for name, time in again.items()}
    least = min(seconds.values())
    chosen = next(plan for plan in plans if seconds[str(plan)] <= NOISE * least)
    times = [
        TimedPlan(groups=plan.groups, direction=plan.direction, milliseconds=round(1e3 * seconds[str(plan)], 4))
        for plan in sorted(plans, key=lambda plan: seconds[str(plan)])
    ]
    return chosen, times


def machine(target: Target) -> str:
    """What `measured` measures on, for the manifest."""
    place = "CUDA" if target == "cuda" else f"the CPU, {plan_cores().model_threads} threads"
    return f"onnxruntime {onnxruntime.__version__} on {place}"


def _best(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    return {name: min(times) for name, times in in_turns(calls, rounds).items()}

"""Time every contraction plan for a spread of shapes, and fit the planner's constants to the times.

    python -m tests.benchmarks.plans --out plans.json          # measure
    python -m tests.benchmarks.plans --out plans.json --fit    # fit to what that file holds

A file that exists is gone on with, not begun anew. What counts is the regret: the time of the plan that the cost model
chooses, divided by that of the best plan.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.timing import in_turn, machine_line, medians, seconds
from ttmodels import contraction
from ttmodels.contraction import MACHINES, Machine, Plan
from ttmodels.initialisers import random_cores
from ttmodels.tensor_train import TTShape

SHAPES = {
    "frame to GRU": ((8, 20, 20, 18), (12, 4, 4, 4)),
    "frame to layer": ((8, 20, 20, 18), (4, 8, 8, 4)),
    "VGG": ((2, 7, 8, 8, 7, 4), (4, 4, 4, 4, 4, 4)),
    "small": ((3, 4, 4, 12), (2, 2, 2, 2)),
    "features to GRU": ((8, 10, 16), (12, 4, 4)),
}
RANKS = (2, 8, 32)
ROWS = (1, 16, 96, 512)
HOPELESS = 4.0
"""Times slower than the best: such a plan is timed once only."""
WORK = 20.0
"""Times the operations of the plan with the fewest: such a plan is not timed at all, unless it is done in no time."""
BYTES = 2e9
"""A case whose inputs, or whose dense matrix, are larger is left out."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to plan for."""

    shape: TTShape
    rows: int
    training: bool
    dtype: str = "float32"

    @property
    def type(self) -> torch.dtype:
        return getattr(torch, self.dtype)


Times = dict[Case, dict[Plan, float]]


def cases(dtypes: Sequence[str]) -> Iterator[Case]:
    for dtype in dtypes:
        for n, m in SHAPES.values():
            for shape in dict.fromkeys(TTShape.make(n, m, rank) for rank in RANKS):
                for rows in ROWS:
                    largest = max(rows * shape.in_features, shape.in_features * shape.out_features)
                    if 4 * largest <= BYTES:
                        yield from (Case(shape, rows, training, dtype) for training in (False, True))


def worth_timing(shape: TTShape, rows: int) -> list[Plan]:
    """All plans but those that work far more than another: merging at a high rank can take a minute."""
    work = {
        plan: sum(contraction.merge_flops(plan, shape)) + contraction.cost(plan, shape, rows).flops
        for plan in contraction.all_plans(shape.num_cores)
    }
    return [plan for plan, flops in work.items() if flops <= max(WORK * min(work.values()), 1e8)]


def measure(case: Case, runs: int, device: str) -> dict[Plan, float]:
    """Median seconds of every plan; of plans that could not be the best, the seconds of one call."""
    cores = [
        core.to(device, case.type).requires_grad_() for core in random_cores(case.shape, case.shape.in_features**-0.5)
    ]
    x = torch.randn(case.rows, case.shape.in_features, dtype=case.type, device=device)

    def run(plan: Plan) -> None:
        if case.training:
            torch.autograd.grad(contraction.apply(x, cores, plan, case.shape).sum(), cores)
        else:
            with torch.no_grad():
                contraction.apply(x, cores, plan, case.shape)

    plans = worth_timing(case.shape, case.rows)
    first = {plan: min(seconds(lambda p=plan: run(p), device) for _ in range(2)) for plan in plans}
    least = min(first.values())
    found = {str(i): plan for i, plan in enumerate(plans) if first[plan] <= HOPELESS * least}
    taken = in_turn({name: lambda p=plan: run(p) for name, plan in found.items()}, runs, device)
    return first | {found[name]: time for name, time in medians(taken).items()}


# ---- the file


def save(path: Path, times: Times, machine: str) -> None:
    rows = [
        {
            "input_modes": case.shape.input_modes,
            "output_modes": case.shape.output_modes,
            "tt_ranks": case.shape.tt_ranks,
            "rows": case.rows,
            "training": case.training,
            "dtype": case.dtype,
            "plans": [[plan.groups, plan.direction, seconds] for plan, seconds in plans.items()],
        }
        for case, plans in times.items()
    ]
    path.write_text(json.dumps({"machine": machine, "cases": rows}, indent=1))


def load(path: Path) -> Times:
    times: Times = {}
    for row in json.loads(path.read_text())["cases"]:
        shape = TTShape(tuple(row["input_modes"]), tuple(row["output_modes"]), tuple(row["tt_ranks"]))
        case = Case(shape, row["rows"], row["training"], row["dtype"])
        times[case] = {Plan(tuple(groups), direction): seconds for groups, direction, seconds in row["plans"]}
    return times


# ---- the fit


def log_regrets(machine: Machine, times: Times, softness: float = 0.0) -> np.ndarray:
    """Log of the chosen plan's time over the best plan's, for each case.

    With `softness` it is the mean over plans weighted by how near their estimates are to the least, so that a search
    sees a slope where the choice itself does not change.
    """
    regrets = []
    for case, plans in times.items():
        estimates = np.log(
            [
                machine.seconds(plan, case.shape, case.rows, dtype=case.type, training=case.training, merged_once=False)
                for plan in plans
            ]
        )
        logs = np.log(list(plans.values()))
        logs -= logs.min()
        if softness:
            weights = np.exp((estimates.min() - estimates) / softness)
            regrets.append(float(weights @ logs / weights.sum()))
        else:
            regrets.append(float(logs[estimates.argmin()]))
    return np.array(regrets)


def fit(machine: Machine, times: Times) -> Machine:
    """Each constant in turn is multiplied or divided as long as that lowers the loss; then by smaller steps."""

    def loss(candidate: Machine) -> float:
        regrets = log_regrets(candidate, times, softness=0.1)
        return float(regrets.mean() + 0.2 * np.sqrt(np.square(regrets).mean()))

    best = loss(machine)
    for factor in (4.0, 2.0, 1.4, 1.15):
        improved = True
        while improved:
            improved = False
            for field in dataclasses.fields(machine):
                for step in (factor, 1 / factor):
                    candidate = dataclasses.replace(machine, **{field.name: getattr(machine, field.name) * step})
                    value = loss(candidate)
                    if value < best - 1e-5:
                        machine, best, improved = candidate, value, True
    return machine


def describe(machine: Machine, times: Times) -> str:
    """Mean and worst regret, overall and by pass, and the worst cases."""
    regrets = dict(zip(times, np.expm1(log_regrets(machine, times)), strict=True))
    groups: dict[str, list[float]] = defaultdict(list)
    for case, regret in regrets.items():
        groups["all"].append(regret)
        groups["forward and backward" if case.training else "forward"].append(regret)
    lines = [
        f"{name}: {len(found)} cases, mean regret {np.mean(found):.1%}, 95 % below {np.quantile(found, 0.95):.0%}, "
        f"worst {max(found):.0%}, {sum(r > 0.1 for r in found)} above 10 %"
        for name, found in groups.items()
    ]
    for case, regret in sorted(regrets.items(), key=lambda item: -item[1])[:8]:
        plans = times[case]
        best = min(plans, key=lambda plan: plans[plan])
        lines.append(
            f"  {regret:6.0%}  {case.shape.input_modes} -> {case.shape.output_modes} rank {max(case.shape.tt_ranks)}, "
            f"{case.rows} rows, training {case.training}: best {best.groups} {best.direction}, "
            f"{plans[best] * 1e3:.3g} ms"
        )
    return "\n".join(lines)


def paste(machine: Machine) -> str:
    values = ", ".join(f"{field.name}={getattr(machine, field.name):.2g}" for field in dataclasses.fields(machine))
    return f"Machine({values})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of measurements")
    parser.add_argument("--fit", action="store_true", help="fit to the file instead of measuring")
    parser.add_argument("--runs", type=int, default=9, help="calls that a median is of")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--limit-s", type=float, default=math.inf, help="stop measuring after so many seconds")
    chosen = parser.parse_args()
    times = load(chosen.out) if chosen.out.exists() else {}
    machine = MACHINES[chosen.device]
    if chosen.fit:
        if not times:
            parser.error(f"--fit: expected measurements in {chosen.out}, found none")
        print(f"before: {paste(machine)}\n{describe(machine, times)}")
        machine = fit(machine, times)
        print(f"after:  {paste(machine)}\n{describe(machine, times)}")
        return
    line, spent = machine_line(chosen.device), 0.0
    print(line)
    for case in cases(chosen.dtypes):
        if case in times or spent > chosen.limit_s:
            continue

        def measured(case: Case = case) -> None:
            times[case] = measure(case, chosen.runs, chosen.device)

        spent += seconds(measured)
        save(chosen.out, times, line)
        best = min(times[case], key=lambda plan: times[case][plan])
        print(
            f"{case.shape.input_modes} -> {case.shape.output_modes} rank {max(case.shape.tt_ranks)}, {case.rows} rows, "
            f"training {case.training}: best {best.groups} {best.direction} {times[case][best] * 1e3:.3g} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()

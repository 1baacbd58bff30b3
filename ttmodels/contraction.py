"""Contraction plans: how a batch of rows meets a Tensor-Train matrix.

A plan cuts the train into groups of neighbouring cores. Each group is merged into one factor [r, N, M, r'], and the
rows meet the factors one after the other. Because a factor is applied from the side on which its index lies, each
step is one MatMul on a view: nothing is ever transposed.

One group is the dense matrix, d groups the classic sweep, two groups are usually fastest.

Legend: B rows, N / M input / output size of a group, r / s rank on its left / right, P product of the input modes not
met yet, Q product of the output modes made so far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from ttmodels.tensor_train import TTShape, merge_pair

Direction = Literal["right_to_left", "left_to_right"]


@dataclass(frozen=True)
class Plan:
    """groups: number of cores in each group, from the left; direction: which end meets the rows first."""

    groups: tuple[int, ...]
    direction: Direction = "right_to_left"

    def bounds(self) -> list[tuple[int, int]]:
        """First and last-plus-one core of each group."""
        ends = list(itertools.accumulate(self.groups))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def factor_shapes(self, shape: TTShape) -> list[tuple[int, int, int, int]]:
        """[r, N, M, s] of each merged factor."""
        if sum(self.groups) != shape.num_cores or min(self.groups) < 1:
            raise ValueError(f"plan {self.groups} is for {sum(self.groups)} cores, expected {shape.num_cores}")
        return [
            (
                shape.tt_ranks[a],
                math.prod(shape.input_modes[a:b]),
                math.prod(shape.output_modes[a:b]),
                shape.tt_ranks[b],
            )
            for a, b in self.bounds()
        ]


def all_plans(num_cores: int) -> Iterator[Plan]:
    """Every cut, in both directions; the dense plan once."""
    for cuts in itertools.product((False, True), repeat=num_cores - 1):
        groups = [1]
        for cut in cuts:
            if cut:
                groups.append(1)
            else:
                groups[-1] += 1
        yield Plan(tuple(groups), "right_to_left")
        if len(groups) > 1:
            yield Plan(tuple(groups), "left_to_right")


# ---- running a plan


def merge(cores: Sequence[Tensor], plan: Plan) -> list[Tensor]:
    """One factor [r, N, M, s] a group; differentiable."""
    factors = []
    for a, b in plan.bounds():
        factor = cores[a]
        for core in cores[a + 1 : b]:
            factor = merge_pair(factor, core)
        factors.append(factor)
    return factors


A = TypeVar("A")


@dataclass(frozen=True)
class Step:
    """One MatMul of a plan. The running value is viewed as `view` (-1 the batch), and meets the factor as a matrix
    `matrix_shape` from the right (value @ matrix) or from the left (matrix @ value).

    factor: which group; axes: order of the factor's axes [r, N, M, s] before it is reshaped to the matrix.
    """

    factor: int
    side: Literal["left", "right"]
    view: tuple[int, ...]
    axes: tuple[int, int, int, int]
    matrix_shape: tuple[int, int]


def steps(plan: Plan, shape: TTShape) -> list[Step]:
    """The MatMuls of a plan, in the order in which the rows meet them. The last value is viewed as [B, M] after them.

    Right to left, the value is [B, P, N, s, Q] and becomes [B, P, r, M, Q]: the factor comes from the left, but for the
    first step, where Q = 1 and a plain product from the right serves. Left to right mirrors it.
    """
    factors = plan.factor_shapes(shape)
    done: list[Step] = []
    if plan.direction == "right_to_left":
        q = 1
        for index in reversed(range(len(factors))):
            r, n, m, s = factors[index]
            if q == 1:
                done.append(Step(index, "right", (-1, n * s), (1, 3, 0, 2), (n * s, r * m)))
            else:
                done.append(Step(index, "left", (-1, n * s, q), (0, 2, 1, 3), (r * m, n * s)))
            q *= m
    else:
        p = shape.in_features
        for index, (r, n, m, s) in enumerate(factors):
            p //= n
            if p == 1:
                done.append(Step(index, "right", (-1, r * n), (0, 1, 2, 3), (r * n, m * s)))
            else:
                done.append(Step(index, "left", (-1, r * n, p), (2, 3, 0, 1), (m * s, r * n)))
    return done


def contract(
    value: A,
    matrices: Sequence[A],
    todo: Sequence[Step],
    *,
    matmul: Callable[[A, A], A],
    reshape: Callable[[A, tuple[int, ...]], A],
) -> A:
    """Run the steps on anything that has a MatMul and a reshape: tensors, or symbols of an ONNX graph.

    Shape: value [B, N] -> [?], to be viewed as [B, M] by the caller, who knows B.
    """
    for step, matrix in zip(todo, matrices, strict=True):
        value = reshape(value, step.view)
        value = matmul(value, matrix) if step.side == "right" else matmul(matrix, value)
    return value


def step_matrices(factors: Sequence[Tensor], todo: Sequence[Step]) -> list[Tensor]:
    """Each step's factor as the matrix it meets the rows with."""
    return [factors[step.factor].permute(step.axes).reshape(step.matrix_shape) for step in todo]


def apply(x: Tensor, cores: Sequence[Tensor], plan: Plan, shape: TTShape) -> Tensor:
    """x @ full(cores) by a plan. Shape: [..., N] -> [..., M]."""
    todo = steps(plan, shape)
    matrices = step_matrices(merge(cores, plan), todo)
    value = contract(x, matrices, todo, matmul=_matmul, reshape=lambda v, view: v.reshape(view))
    return value.reshape(*x.shape[:-1], shape.out_features)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


# ---- choosing one


@dataclass(frozen=True)
class Cost:
    """What a plan costs for a number of rows."""

    flops: int
    """Multiplications and additions on the rows."""
    values_moved: int
    """Values read and written by the MatMuls, factors included."""
    merge_flops: int
    """Once a batch in training, once for all in an exported graph."""


def cost(plan: Plan, shape: TTShape, num_rows: int) -> Cost:
    flops = moved = 0
    value = num_rows * shape.in_features
    for step in steps(plan, shape):
        inner = step.matrix_shape[0] if step.side == "right" else step.matrix_shape[1]
        outer = math.prod(step.matrix_shape) // inner
        made = value // inner * outer
        flops += 2 * value * outer
        moved += value + made + inner * outer
        value = made
    merge_flops = 0
    r, n, m = shape.tt_ranks, shape.input_modes, shape.output_modes
    for a, b in plan.bounds():
        for k in range(a + 1, b):
            merge_flops += 2 * r[a] * math.prod(n[a:k]) * math.prod(m[a:k]) * r[k] * n[k] * m[k] * r[k + 1]
    return Cost(flops, moved, merge_flops)


FLOPS_PER_VALUE = 24.0
"""How many floating-point operations a core does in the time it takes to move one value: the balance of the machine."""


def choose_plan(shape: TTShape, num_rows: int, *, merged_once: bool = False) -> Plan:
    """The plan of least estimated time for `num_rows` rows: operations plus memory traffic on one scale.

    merged_once: leave out the cost of merging, as in an exported graph.
    """

    def estimate(plan: Plan) -> float:
        found = cost(plan, shape, num_rows)
        merging = 0 if merged_once else 3 * found.merge_flops
        return found.flops + FLOPS_PER_VALUE * found.values_moved + merging

    return min(all_plans(shape.num_cores), key=estimate)

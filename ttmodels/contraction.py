"""Contraction plans: how a batch of rows meets a Tensor-Train matrix.

A plan cuts the train into groups of neighbouring cores. Each group is merged into one factor [r, N, M, r'], and the
rows meet the factors one after the other. Because a factor is applied from the side on which its index lies, each
step is one MatMul on a view: nothing is ever transposed.

One group is the dense matrix, d groups the classic sweep, two groups are usually fastest.

Legend: B rows, N / M input / output size of a group, r / s rank on its left / right, P product of the input modes not
met yet, Q product of the output modes made so far.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ttmodels.products import FOLD_BELOW, Chain, plain_autograd
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


@dataclass(frozen=True)
class Route:
    """A plan laid over a shape."""

    plan: Plan
    shape: TTShape
    steps: tuple[Step, ...]

    @staticmethod
    @functools.lru_cache(4096)
    def of(plan: Plan, shape: TTShape) -> Route:
        return Route(plan, shape, tuple(steps(plan, shape)))

    def matrices(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Each step's merged factor as the matrix that it meets the rows with; differentiable."""
        return self.laid_out(merge(cores, self.plan))

    def laid_out(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Merged factors, from the left, as the steps' matrices, in the steps' order."""
        return [factors[step.factor].permute(step.axes).reshape(step.matrix_shape) for step in self.steps]

    def apply(self, x: Tensor, cores: Sequence[Tensor]) -> Tensor:
        """x @ full(cores). Shape: [..., N] -> [..., M]."""
        matrices = self.matrices(cores)
        if plain_autograd(x) or not x.numel():
            value = contract(x, matrices, self.steps, matmul=torch.matmul, reshape=_reshape)
        else:
            value = Chain.apply(x, self.views, self.sides, *matrices)  # type: ignore[no-untyped-call]
        return value.reshape(*x.shape[:-1], self.shape.out_features)

    @property
    def views(self) -> tuple[tuple[int, ...], ...]:
        return tuple(step.view for step in self.steps)

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(step.side for step in self.steps)


def apply(x: Tensor, cores: Sequence[Tensor], plan: Plan, shape: TTShape) -> Tensor:
    """x @ full(cores) by a plan. Shape: [..., N] -> [..., M]."""
    return Route.of(plan, shape).apply(x, cores)


def _reshape(value: Tensor, view: tuple[int, ...]) -> Tensor:
    return value.reshape(view)


# ---- choosing one


@dataclass(frozen=True)
class Machine:
    """What decides the time of the products of `ttmodels.products` on a kind of device.

    The figures were set from single products and checked against whole plans by `tests/benchmarks/plans.py`; they need
    to rank plans, not to predict seconds.
    """

    flops_per_s: float
    """Of a large float32 product."""
    batched_flops_per_s: float
    """Of a batch of products of middling size."""
    bytes_per_s: float
    """Of values that do not stay in a cache."""
    op_s: float
    """For starting one operation."""
    small: float
    """A side of this size halves a product's speed."""
    batched_small: float
    """The same in a batch of products."""

    def seconds(
        self, plan: Plan, shape: TTShape, num_rows: int, *, dtype: torch.dtype, training: bool, merged_once: bool
    ) -> float:
        """Estimated time of a plan for `num_rows` rows; with the backward pass where `training`."""
        size = dtype.itemsize
        total = 0.0
        num_values = num_rows * shape.in_features
        for number, step in enumerate(steps(plan, shape)):
            first, second = step.matrix_shape
            if step.side == "right":
                rows = num_values // first
                total += self._product(rows, first, second, size)
                if training:
                    total += self._copy(rows * second, size) + self._product(second, rows, first, size)
                    total += self._product(rows, second, first, size) if number else 0
                num_values = rows * second
            else:
                q = step.view[2]
                batch = num_values // (second * q)
                total += self._from_left(batch, first, second, q, size)
                if training:
                    total += self._copy(batch * q * (first + second), size)
                    total += self._product(first, batch * q, second, size)
                    total += self._from_left(batch, second, first, q, size) if number else 0
                num_values = batch * first * q
        if not merged_once:
            merging = sum(self.op_s + flops / self.flops_per_s for flops in merge_flops(plan, shape))
            merging += self._copy(sum(math.prod(factor) for factor in plan.factor_shapes(shape)), size)
            total += (3 if training else 1) * merging
        return total

    def _product(self, rows: int, inner: int, columns: int, size: int) -> float:
        share = math.prod(side / (side + self.small) for side in (rows, inner, columns))
        moved = size * (rows * inner + inner * columns + rows * columns)
        return self.op_s + 2 * rows * inner * columns / (self.flops_per_s * share * 4 / size) + moved / self.bytes_per_s

    def _from_left(self, batch: int, rows: int, inner: int, columns: int, size: int) -> float:
        """batch times [rows, inner] @ [inner, columns], folded into one product where that is how it is done."""
        if columns < FOLD_BELOW and batch > 1:
            return self._product(batch * columns, inner, rows, size) + self._copy(
                batch * columns * (rows + inner), size
            )
        share = math.prod(side / (side + self.batched_small) for side in (rows, inner, columns))
        flops = 2 * batch * rows * inner * columns
        moved = size * (batch * inner * columns + rows * inner + batch * rows * columns)
        return self.op_s + flops / (self.batched_flops_per_s * share * 4 / size) + moved / self.bytes_per_s

    def _copy(self, num_values: int, size: int) -> float:
        return self.op_s + 2 * size * num_values / self.bytes_per_s


MACHINES = {
    "cpu": Machine(
        flops_per_s=3e11, batched_flops_per_s=1.2e11, bytes_per_s=1.2e10, op_s=1e-5, small=12, batched_small=12
    ),
    # Not measured: the ratios of a large accelerator.
    "cuda": Machine(
        flops_per_s=2e13, batched_flops_per_s=1e13, bytes_per_s=1.5e12, op_s=6e-6, small=48, batched_small=16
    ),
}


def merge_flops(plan: Plan, shape: TTShape) -> list[int]:
    """Operations of each merge of two neighbours that a plan makes."""
    r, n, m = shape.tt_ranks, shape.input_modes, shape.output_modes
    return [
        2 * r[a] * math.prod(n[a:k]) * math.prod(m[a:k]) * r[k] * n[k] * m[k] * r[k + 1]
        for a, b in plan.bounds()
        for k in range(a + 1, b)
    ]


@dataclass(frozen=True)
class Cost:
    """What a plan costs for a number of rows."""

    flops: int
    """Multiplications and additions on the rows."""
    values_moved: int
    """Values read and written by the MatMuls, factors included."""


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
    return Cost(flops, moved)


def ranked_plans(
    shape: TTShape,
    num_rows: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = False,
    merged_once: bool = False,
) -> list[Plan]:
    """All plans, that of least estimated time first.

    Args:
        num_rows: rows that meet the train at once.
        dtype, device: of the cores; "cpu" or "cuda".
        training: count the backward pass too.
        merged_once: leave out the cost of merging, as in an exported graph.
    """
    machine = MACHINES.get(device, MACHINES["cpu"])

    def seconds(plan: Plan) -> float:
        return machine.seconds(plan, shape, max(num_rows, 1), dtype=dtype, training=training, merged_once=merged_once)

    return sorted(all_plans(shape.num_cores), key=seconds)


@functools.lru_cache(4096)
def choose_plan(
    shape: TTShape,
    num_rows: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = False,
    merged_once: bool = False,
) -> Plan:
    """The plan of least estimated time; arguments as of `ranked_plans`."""
    ranked = ranked_plans(shape, num_rows, dtype=dtype, device=device, training=training, merged_once=merged_once)
    return ranked[0]


NARROW = 32
"""Columns below which ONNX Runtime's product from the left is slow: it does not fold a batch into one product."""
LARGE = 2**17
"""Weights from which a dense matrix is worth avoiding."""
FEWER = 2 / 3
"""Of its operations: a train that needs no more is as fast in ONNX Runtime, or up to 1.8 times faster. Measured on two
threads of a CPU at 1 to 1024 rows: 512 -> 256, 1024 -> 1024 and 2048 -> 512, ranks 2 to 8."""


def onnx_plan(shape: TTShape, num_rows: int) -> Plan:
    """The plan for an ONNX graph that is for any number of rows, of which `num_rows` are typical: the fastest by the
    cost model, but no dense matrix where a train is as fast in ONNX Runtime, since that takes less memory.
    """
    chosen = choose_plan(shape, num_rows, merged_once=True)
    if len(chosen.groups) > 1 or shape.in_features * shape.out_features < LARGE:
        return chosen

    def flops(plan: Plan) -> int:
        return cost(plan, shape, num_rows).flops

    small = [
        plan
        for plan in all_plans(shape.num_cores)
        if flops(plan) <= FEWER * flops(chosen)
        and all(step.side == "right" or step.view[2] >= NARROW for step in steps(plan, shape))
    ]
    return min(small, key=flops, default=chosen)

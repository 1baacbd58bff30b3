"""Every plan against x @ full(cores), and the planner against its own cost model."""

from __future__ import annotations

import math
import random

import pytest
import torch

from tests.tolerances import CONTRACTION, DOUBLE, GRADIENT
from ttmodels import contraction, products
from ttmodels.contraction import MACHINES, Plan, all_plans, choose_plan, cost, merge, merge_flops, onnx_plan, steps
from ttmodels.initialisers import random_cores
from ttmodels.tensor_train import TTShape, full

GRID = [
    TTShape.make((6,), (5,)),
    TTShape.make((1,), (7,)),
    TTShape.make((4, 5), (3, 2), 1),
    TTShape.make((7, 11), (5, 3)),
    TTShape.make((4, 5, 6), (3, 1, 1), 3),
    TTShape.make((2, 3, 5), (7, 2, 3)),
    TTShape.make((4, 6, 5, 9), (2, 3, 4, 2), 3),
    TTShape.make((3, 5, 2, 7), (2, 2, 3, 2), 1),
    TTShape.make((2, 3, 2, 3, 2), (1, 4, 1, 2, 1), (2, 5, 3, 2)),
    TTShape.make((2, 2, 3, 2, 2), (2, 3, 2, 2, 1)),
    TTShape.make((2, 3, 2, 1, 2, 3), (2, 1, 2, 3, 1, 2), 3),
    TTShape.make((2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2)),
]
FRAME = TTShape.make((8, 20, 20, 18), (12, 4, 4, 4), 4)


def cores_of(shape: TTShape) -> list[torch.Tensor]:
    return [core.double() for core in random_cores(shape, 0.3)]


@pytest.mark.parametrize("rows", [(4, 3), (1,), (), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("shape", GRID, ids=str)
def test_every_plan_is_the_dense_product(shape: TTShape, rows: tuple[int, ...]) -> None:
    cores = cores_of(shape)
    x = torch.randn(*rows, shape.in_features, dtype=torch.double)
    want = x @ full(cores)
    for plan in all_plans(shape.num_cores):
        got = contraction.apply(x, cores, plan, shape)
        assert got.shape == want.shape
        assert float((got - want).norm()) <= DOUBLE * float(want.norm()), plan


def test_rows_need_not_lie_one_after_the_other() -> None:
    shape = GRID[6]
    cores = cores_of(shape)
    x = torch.randn(shape.in_features, 3, 2, dtype=torch.double).permute(2, 1, 0)
    for plan in all_plans(shape.num_cores):
        assert torch.allclose(contraction.apply(x, cores, plan, shape), x @ full(cores), atol=DOUBLE * 100)


def test_float32_is_as_good_as_the_dense_product() -> None:
    shape = GRID[6]
    cores = random_cores(shape, 0.3)
    x = torch.randn(3, shape.in_features)
    for plan in all_plans(shape.num_cores):
        want = x @ full(cores)
        assert float((contraction.apply(x, cores, plan, shape) - want).norm()) < CONTRACTION * float(want.norm())


@pytest.mark.parametrize("plan", list(all_plans(3)), ids=str)
def test_every_plan_has_the_dense_gradient(plan: Plan) -> None:
    shape = TTShape.make((3, 4, 2), (2, 2, 3), 3)
    cores = [core.requires_grad_() for core in cores_of(shape)]
    x = torch.randn(5, shape.in_features, dtype=torch.double, requires_grad=True)
    weights = torch.randn(5, shape.out_features, dtype=torch.double)
    want = torch.autograd.grad((x @ full(cores) * weights).sum(), [x, *cores])
    got = torch.autograd.grad((contraction.apply(x, cores, plan, shape) * weights).sum(), [x, *cores])
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, atol=GRADIENT)


@pytest.mark.parametrize("block", [1, 50, 200], ids=lambda block: f"block={block}")
def test_rows_in_blocks_are_the_rows_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row, and of several with a rest; forward with nothing kept, and backward."""
    shape = TTShape.make((3, 4, 2), (2, 2, 3), 3)
    cores = [core.requires_grad_() for core in cores_of(shape)]
    x = torch.randn(7, 2, shape.in_features, dtype=torch.double, requires_grad=True)
    dense = x @ full(cores)
    want = torch.autograd.grad(dense.square().sum(), [x, *cores])
    for name in ("FORWARD_BLOCK", "BACKWARD_BLOCK"):
        monkeypatch.setattr(products, name, block)
    for plan in all_plans(3):
        with torch.no_grad():
            assert torch.allclose(contraction.apply(x, cores, plan, shape), dense, atol=DOUBLE * 100)
        got = torch.autograd.grad(contraction.apply(x, cores, plan, shape).square().sum(), [x, *cores])
        for mine, theirs in zip(got, want, strict=True):
            assert torch.allclose(mine, theirs, atol=GRADIENT)


@pytest.mark.parametrize("plan", list(all_plans(4)), ids=str)
def test_merged_factors_are_a_shorter_train_of_the_same_matrix(plan: Plan) -> None:
    shape = GRID[6]
    cores = cores_of(shape)
    factors = merge(cores, plan)
    assert [tuple(factor.shape) for factor in factors] == plan.factor_shapes(shape)
    assert torch.allclose(full(factors), full(cores), atol=DOUBLE)


def test_there_are_two_plans_for_each_cut_but_one_dense() -> None:
    for d in range(1, 7):
        plans = list(all_plans(d))
        assert len(plans) == len(set(plans)) == 2 * 2 ** (d - 1) - 1
        assert all(sum(plan.groups) == d for plan in plans)


def test_a_plan_has_a_step_for_each_group_in_its_direction() -> None:
    assert [step.factor for step in steps(Plan((1, 2, 1)), GRID[6])] == [2, 1, 0]
    assert [step.factor for step in steps(Plan((1, 2, 1), "left_to_right"), GRID[6])] == [0, 1, 2]
    assert Plan((1, 2, 1)).bounds() == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize("groups", [(2, 1), (4, 1), (0, 4), (5, -1)], ids=str)
def test_a_plan_for_another_train_is_refused(groups: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"plan \({groups[0]}, {groups[1]}\) .* expected 4"):
        Plan(groups).factor_shapes(GRID[6])


# ---- cost


def test_cost_of_the_dense_plan_is_the_dense_product() -> None:
    shape = TTShape.make((4, 5), (2, 3), 2)
    assert cost(Plan((2,)), shape, 7).flops == 2 * 7 * 20 * 6
    assert cost(Plan((2,)), shape, 7).values_moved == 7 * 20 + 20 * 6 + 7 * 6


def test_cost_of_a_sweep_by_hand() -> None:
    """Right to left: [7, 4, 5] meets [5, 2 * 3] and is [7, 4, 2, 3]; then [4 * 2, 2] makes [7, 2, 3]."""
    shape = TTShape.make((4, 5), (2, 3), 2)
    assert cost(Plan((1, 1)), shape, 7).flops == 2 * (7 * 4 * 5 * 6 + 7 * 3 * 8 * 2)
    assert cost(Plan((1, 1), "left_to_right"), shape, 7).flops == 2 * (7 * 5 * 4 * 4 + 7 * 2 * 10 * 3)


def test_merging_by_hand() -> None:
    shape = TTShape.make((4, 5, 2), (2, 3, 2), (2, 3))
    assert merge_flops(Plan((1, 1, 1)), shape) == []
    assert merge_flops(Plan((2, 1)), shape) == [2 * (4 * 2) * 2 * (5 * 3 * 3)]
    assert merge_flops(Plan((3,)), shape) == [2 * (4 * 2) * 2 * (5 * 3 * 3), 2 * (20 * 6) * 3 * (2 * 2)]


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("plan", list(all_plans(4)), ids=str)
def test_what_costs_more_is_estimated_to_cost_more(plan: Plan, device: str) -> None:
    def seconds(num_rows: int = 96, dtype: torch.dtype = torch.float32, **changes: bool) -> float:
        options = {"training": False, "merged_once": False} | changes
        return MACHINES[device].seconds(plan, FRAME, num_rows, dtype=dtype, **options)

    assert 0 < seconds(1) < seconds() < seconds(960)
    assert seconds(training=True) > seconds()
    assert seconds(dtype=torch.bfloat16) < seconds() < seconds(dtype=torch.float64)
    assert seconds(merged_once=True) <= seconds()


# ---- choosing


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_rows", [1, 16, 512])
def test_the_chosen_plan_is_the_cheapest(num_rows: int, training: bool, device: str) -> None:
    chosen = choose_plan(FRAME, num_rows, device=device, training=training)
    seconds = {
        plan: MACHINES[device].seconds(plan, FRAME, num_rows, dtype=torch.float32, training=training, merged_once=False)
        for plan in all_plans(4)
    }
    assert seconds[chosen] == min(seconds.values())


@pytest.mark.parametrize("rows", [1, 16, 512])
def test_the_chosen_plan_is_not_dense_for_a_frame(rows: int) -> None:
    assert len(choose_plan(FRAME, rows).groups) > 1


def test_a_small_matrix_of_high_rank_is_multiplied_densely() -> None:
    assert choose_plan(TTShape.make((4, 4, 4), (4, 4, 4)), 4096).groups == (3,)


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_there_is_a_plan_for_no_rows_at_all(shape: TTShape) -> None:
    assert choose_plan(shape, 0) in all_plans(shape.num_cores)


def test_the_plan_depends_on_what_the_planner_is_told() -> None:
    """Among shapes drawn at random, each of its arguments changes the plan of some."""
    draw = random.Random(0)
    shapes = []
    for _ in range(80):
        d = draw.randint(2, 4)
        modes = [[draw.choice((2, 3, 4, 8, 16, 20)) for _ in range(d)] for _ in range(2)]
        shapes.append(TTShape.make(*modes, draw.choice((1, 4, 16, 64))))
    rows = (1, 16, 128, 1024)
    changes = {
        "training": {"training": True},
        "device": {"device": "cuda"},
        "dtype": {"dtype": torch.float64},
        "merged_once": {"merged_once": True},
    }
    plain = [[choose_plan(shape, count) for shape in shapes] for count in rows]
    assert all(plain[0] != plans for plans in plain[1:])
    for name, change in changes.items():
        assert plain != [[choose_plan(shape, count, **change) for shape in shapes] for count in rows], name


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        (TTShape.make((4, 8, 8, 8), (4, 4, 4, 8), 8), (2, 2)),  # half the work of the dense matrix
        (TTShape.make((8, 8, 8), (4, 8, 8), 4), (1, 2)),
        (TTShape.make((8, 16, 16), (8, 8, 8), 8), (3,)),  # as much work
        (TTShape.make((4, 4, 8, 8), (4, 4, 8, 8), 12), (4,)),  # nearly as much
        (TTShape.make((8, 8, 16), (8, 8, 4), 2), (1, 2)),
        (TTShape.make((4, 8, 8), (4, 4, 4), 2), (3,)),  # a matrix that fits any cache
        (FRAME, choose_plan(FRAME, 256, merged_once=True).groups),
    ],
    ids=str,
)
def test_an_exported_train_is_dense_only_where_that_is_faster(shape: TTShape, groups: tuple[int, ...]) -> None:
    plan = onnx_plan(shape, 256)
    assert plan.groups == groups
    dense = Plan((shape.num_cores,))
    if len(groups) > 1:
        assert cost(plan, shape, 256).flops < 0.7 * cost(dense, shape, 256).flops
        weights = sum(math.prod(factor) for factor in plan.factor_shapes(shape))
        assert weights < shape.in_features * shape.out_features / 4

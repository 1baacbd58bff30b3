import pytest
import torch

from tests.tolerances import CONTRACTION
from ttmodels import contraction
from ttmodels.contraction import Plan, all_plans, choose_plan, cost
from ttmodels.tensor_train import TTShape, full, random_cores

SHAPES = [
    TTShape.make((6,), (5,), 1),
    TTShape.make((4, 6, 5, 9), (2, 3, 4, 2), 3),
    TTShape.make((2, 3, 2, 3, 2), (1, 4, 1, 2, 1), (2, 5, 3, 2)),
    TTShape.make((4, 5, 6), (3, 1, 1), 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_plan_is_the_dense_product(shape: TTShape) -> None:
    cores = random_cores(shape, 0.3)
    x = torch.randn(2, 3, shape.in_features)
    for plan in all_plans(shape.num_cores):
        got = contraction.apply(x, cores, plan, shape)
        assert torch.allclose(got, x @ full(cores), atol=CONTRACTION), plan


@pytest.mark.parametrize("plan", list(all_plans(3)), ids=str)
def test_every_plan_has_the_dense_gradient(plan: Plan) -> None:
    shape = TTShape.make((3, 4, 2), (2, 2, 3), 3)
    cores = [core.double().requires_grad_() for core in random_cores(shape, 0.3)]
    x = torch.randn(5, shape.in_features, dtype=torch.double, requires_grad=True)
    weights = torch.randn(5, shape.out_features, dtype=torch.double)
    want = torch.autograd.grad((x @ full(cores) * weights).sum(), [x, *cores])
    got = torch.autograd.grad((contraction.apply(x, cores, plan, shape) * weights).sum(), [x, *cores])
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_there_are_two_plans_for_each_cut_but_one_dense() -> None:
    plans = list(all_plans(5))
    assert len(plans) == len(set(plans)) == 2 * 2**4 - 1


def test_cost_of_the_dense_plan_is_the_dense_product() -> None:
    shape = TTShape.make((4, 5), (2, 3), 2)
    assert cost(Plan((2,)), shape, 7).flops == 2 * 7 * 20 * 6


def test_a_plan_for_another_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plan \(2, 1\) is for 3 cores, expected 4"):
        Plan((2, 1)).factor_shapes(SHAPES[1])


def test_the_chosen_plan_is_not_dense_for_a_frame() -> None:
    shape = TTShape.make((8, 20, 20, 18), (12, 4, 4, 4), 4)
    for rows in (1, 16, 512):
        assert len(choose_plan(shape, rows).groups) > 1

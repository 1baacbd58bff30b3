import math

import pytest
import torch

from ttmodels.checkpoint import Progress
from ttmodels.config import TrainConfig
from ttmodels.schedule import PLATEAU_FACTOR, ended, schedule


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "plateau"])
def test_the_warm_up_rises_in_a_line(kind: str) -> None:
    config = TrainConfig(schedule=kind, warmup=0.1)
    assert [schedule(config, done, ()) for done in (0.0, 0.025, 0.05, 0.1)] == pytest.approx([0, 0.25, 0.5, 1])


def test_cosine_and_line_are_those_of_torch() -> None:
    steps = 20
    for kind, make in (
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)),
        ("linear", lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = make(optimizer)
        for step in range(steps):
            config = TrainConfig(schedule=kind, warmup=0.0)
            assert schedule(config, step / steps, ()) == pytest.approx(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
    assert schedule(TrainConfig(schedule="constant"), 1.0, ()) == 1


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_plateaus_are_those_of_torch(epochs: int) -> None:
    losses = torch.randint(0, 20, (60,)).float().tolist()  # with equal ones among them
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=PLATEAU_FACTOR, patience=epochs - 1, threshold=0.0, eps=0.0
    )
    config = TrainConfig(schedule="plateau", plateau_epochs=epochs)
    for count in range(len(losses)):
        assert schedule(config, 0.5, losses[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(losses[count])
    assert optimizer.param_groups[0]["lr"] < PLATEAU_FACTOR


def test_a_loss_that_is_no_number_is_no_better_one() -> None:
    config = TrainConfig(schedule="plateau", plateau_epochs=2)
    assert schedule(config, 0.5, [1.0, math.nan, math.nan]) == PLATEAU_FACTOR


def test_a_run_ends_with_its_epochs_or_its_patience() -> None:
    config = TrainConfig(epochs=10, patience=3)
    assert not ended(config, Progress())
    assert not ended(config, Progress(epoch=6, best_epoch=4))
    assert ended(config, Progress(epoch=7, best_epoch=4)).startswith("after epoch 4 there were 3 without a better one")
    assert ended(config, Progress(epoch=10, best_epoch=9)) == "all 10 epochs are done"
    assert not ended(TrainConfig(epochs=10), Progress(epoch=9, best_epoch=1))

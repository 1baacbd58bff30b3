from types import SimpleNamespace

import pytest

from tests.made import random_classifier, tiny_config
from ttmodels.config import TrainConfig
from ttmodels.data.augment import Augmentation
from ttmodels.distributed import Team
from ttmodels.summary import model_summary, run_summary


class Decoded(SimpleNamespace):
    num_cached = 7

    def __len__(self) -> int:
        return 9


def said_of(config: TrainConfig, labels: tuple[str, ...], team: Team) -> str:
    augment = Augmentation.of(config, 6, labels)
    return run_summary(config, augment, Decoded(), labels, team)  # type: ignore[arg-type]


def test_a_model_says_its_train_and_its_parameters() -> None:
    model = random_classifier(tiny_config())
    said = model_summary(model)
    assert "3: left, right, still" in said
    assert "(3, 4, 4, 12) -> (6, 2, 2, 2), ranks (1, 3, 3, 3, 1)" in said  # three gates of 16
    assert f"{model.num_parameters():,} parameters" in said
    assert f"{model.compression().input_to_hidden:,.1f} times fewer than dense" in said


def test_a_run_says_the_choices_made() -> None:
    said = said_of(TrainConfig(), ("run", "jump"), Team("cpu"))
    assert "7 in the cache, 2 anew each epoch" in said
    assert "augmentation     mirrored left to right" in said
    assert "30 epochs, never ended early; 32 clips a step; learning rate 0.003, cosine after a warm-up of 5 %" in said
    assert "class weights none, label smoothing 0" in said
    assert said.endswith("in fp32 on cpu")
    config = TrainConfig(patience=4, schedule="plateau", precision="bf16", class_weights="balanced")
    said = said_of(config, ("run", "jump"), Team("cuda:1", 1, 2))
    assert "ended after 4 without a better one" in said
    assert "plateau after a warm-up" in said
    assert "class weights balanced" in said
    assert said.endswith("in bf16 on cuda:1, 2 processes")


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(mirror_horizontal="")])
def test_why_clips_are_not_mirrored_is_said(config: TrainConfig) -> None:
    said = said_of(config, ("turn left", "jump"), Team("cpu"))
    assert ("which may matter to turn left (--mirror-horizontal)" in said) == (config.mirror_horizontal == "auto")

import json

import pytest

from service.video import Sampling
from tests.made import tiny_config
from ttmodels import config as configs
from ttmodels.config import TrainConfig


def test_json_round_trip() -> None:
    model = tiny_config(
        cell="gru", num_layers=2, bidirectional=True, reset_after=False, recurrent_ranks=(2, 3, 2), activation="gelu",
        pooling="mean", sampling=Sampling(num_frames=3, height=12, width=16),
    )  # fmt: skip
    assert configs.model_config_from_json(configs.to_json(model)) == model
    run = TrainConfig(epochs=3, learning_rate=0.5)
    assert configs.train_config_from_json(configs.to_json(run)) == run


def test_a_model_of_before_its_options_is_a_single_standard_layer() -> None:
    values = json.loads(configs.to_json(tiny_config()))
    for name in ("num_layers", "bidirectional", "activation", "recurrent_activation", "reset_after", "recurrent_ranks"):
        del values[name]
    assert configs.model_config_from_json(json.dumps(values)) == tiny_config()


def test_unknown_fields_are_named_and_missing_ones_keep_their_defaults() -> None:
    values = json.loads(configs.to_json(TrainConfig(epochs=7)))
    values.pop("seed")
    assert configs.train_config_from_json(json.dumps(values)) == TrainConfig(epochs=7)
    with pytest.raises(ValueError, match=r"got also \['momentum'\]"):
        configs.train_config_from_json(json.dumps(values | {"momentum": 0.9}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_modes": (4, 8, 1, 1)}, r"input_modes for 16x12 RGB \(4, 8, 1, 1\) multiply to 32, expected 576"),
        ({"tt_ranks": (1, 3, 1)}, "tt_ranks: expected 5 positive ranks"),
        ({"cell": "qrnn"}, "cell: expected one of rnn, gru, lstm, got 'qrnn'"),
        ({"pooling": "max"}, "pooling: expected one of last, mean, got 'max'"),
        ({"activation": "swish"}, "activation: expected one of linear, tanh, .*, got 'swish'"),
        ({"recurrent_activation": "step"}, "recurrent_activation: expected one of"),
        ({"cell": "rnn", "recurrent_activation": "relu"}, "recurrent_activation: an rnn has no gates, got 'relu'"),
        ({"cell": "lstm", "reset_after": False}, "reset_after: expected a gru where it is off, got 'lstm'"),
        ({"num_layers": 0}, "num_layers of at least 1, got 0"),
        ({"recurrent_ranks": (2, 2)}, "recurrent_ranks: expected"),
        ({"labels": ("a", "a")}, "labels that differ"),
        ({"dropout": 1.0}, "dropout in"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"valid_fraction": 1.0},
        {"over_time_weight": 1.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"warmup": 5.0},
        {"clip_norm": 0.0},
        {"patience": -1},
        {"plateau_epochs": 0},
        {"schedule": "sine"},
        {"precision": "fp8"},
        {"class_weights": "even"},
        {"label_smoothing": 1.0},
        {"seed": -1},
    ],
)
def test_a_run_that_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TrainConfig(**changes)  # type: ignore[arg-type]

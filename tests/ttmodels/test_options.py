from pathlib import Path

import pytest

from ttmodels import train as training
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.config import TrainConfig
from ttmodels.options import make_parser, new_run, options_given, resumed_run

LABELS = ("left", "right")


def given(*options: str) -> dict[str, object]:
    return options_given(make_parser("").parse_args(["--data", "clips", "--out", "run", *options]))


def run_of(*options: str) -> Checkpoint:
    """What is saved of a run with these options, without its tensors."""
    model, config = new_run(LABELS, given(*options))
    return Checkpoint(
        model_config=model, train_config=config, progress=Progress(), tensors={}, sha256="", path=Path("last")
    )


def test_help_explains_every_option_with_its_default() -> None:
    """One text says what an option is: the configuration's own."""
    parser = make_parser(training.__doc__ or "")
    for action in parser._actions:
        assert action.help, action.option_strings
        default = getattr(TrainConfig(), action.dest, None)
        if default is not None:
            assert action.help.endswith(f"({default})")
    shown = " ".join(parser.format_help().split())
    assert "share of all steps in which the learning rate rises from 0 (0.05)" in shown
    assert "among equal ones that with the lowest validation loss" in shown
    assert "LABEL=LABEL" in shown


def test_a_new_run_has_what_is_asked_and_else_the_defaults() -> None:
    model, config = new_run(LABELS, given("--width", "16", "--height", "12", "--hidden", "16", "--epochs", "3"))
    assert (model.sampling.width, model.sampling.height, model.hidden_size) == (16, 12, 16)
    assert (model.input_modes, model.tt_ranks) == ((3, 4, 4, 12), (1, 4, 4, 4, 1))
    assert config == TrainConfig(epochs=3)


def test_a_resumed_run_takes_its_own_configuration_and_more_epochs() -> None:
    saved = run_of("--hidden", "16", "--rank", "3", "--epochs", "3", "--gain", "0.5")
    assert resumed_run(saved, given()) == (saved.model_config, saved.train_config)
    _, config = resumed_run(saved, given("--hidden", "16", "--rank", "3", "--epochs", "5"))
    assert config == TrainConfig(epochs=5, gain=0.5)
    with pytest.raises(ValueError, match=r"has --gain 0.5, --rank 3; got --gain 0.25, --rank 2\. Only --epochs may"):
        resumed_run(saved, given("--rank", "2", "--gain", "0.25"))

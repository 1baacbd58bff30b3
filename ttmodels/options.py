"""The options of `python -m ttmodels.train`, and the configurations that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.cores import usable_cores
from service.manifest import Scaling
from service.video import Sampling
from ttmodels.backbone import FRAME_SIZE, SCALING, feature_modes
from ttmodels.checkpoint import Checkpoint
from ttmodels.commandline import positive
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.decoded import CACHE_BYTES
from ttmodels.modes import balanced_modes, check_modes, frame_modes
from ttmodels.tensor_train import TTShape

HIDDEN_SIZE = 64
RANK = 4


def make_parser(description: str) -> argparse.ArgumentParser:
    """Of `python -m ttmodels.train`. Of the model's and the run's options, only those given are in the namespace: a
    resumed run can tell what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.train",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one sub-folder of videos per class, or a CSV list"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--resume", action="store_true", help="go on from OUT/last.safetensors")
    begun.add_argument("--overwrite", action="store_true", help="start anew where OUT holds a run already")
    parser.add_argument("--cache", type=Path, help="folder for decoded clips, which several runs may share (OUT/cache)")
    parser.add_argument(
        "--cache-bytes",
        type=positive,
        default=CACHE_BYTES,
        help=f"how large it may grow; clips for which there is no room are decoded anew each epoch ({CACHE_BYTES})",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (cuda where there is one, else cpu; one a process)")
    threads = max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    parser.add_argument("--threads", type=positive, default=threads, help="of torch in each process (usable cores)")

    def add(group: argparse._ArgumentGroup, name: str, default: object, meaning: str, **more: Any) -> None:
        shown = meaning if default in (None, ()) else f"{meaning} ({default})"
        how = _form(default) | {"default": argparse.SUPPRESS, "help": shown} | more
        group.add_argument(f"--{name.replace('_', '-')}", **how)

    model = parser.add_argument_group("model")
    sampling = Sampling()
    add(
        model,
        "policy",
        sampling.policy,
        "which frames: spread over the clip's time, at a --rate, the first, windows of frames in a row, or keyframes",
        choices=_choices("policy"),
    )
    add(model, "num_frames", sampling.num_frames, "frames taken of a clip")
    add(model, "rate", None, "frames a second, of --policy rate", type=float)
    add(model, "window_length", None, "frames in a window, of --policy windows", type=int)
    add(
        model,
        "window_stride",
        None,
        "frames from the start of a window to that of the next, of --policy windows",
        type=int,
    )
    add(model, "width", sampling.width, f"of these frames, in pixels; with a backbone {FRAME_SIZE}")
    add(model, "height", sampling.height, f"of these frames, in pixels; with a backbone {FRAME_SIZE}")
    add(model, "resize_filter", sampling.resize_filter, "how they are made smaller", choices=_choices("resize_filter"))
    add(model, "hidden", HIDDEN_SIZE, "units of the recurrence")
    add(model, "rank", RANK, "inner TT-rank")
    modes = {"type": int, "nargs": "+"}
    add(model, "input_modes", "two for the lines, two for the columns", "factors of HEIGHT * WIDTH * 3", **modes)
    add(model, "output_modes", "balanced", "factors of the hidden size", **modes)
    run = parser.add_argument_group("run")
    for group, config in ((model, ModelConfig), (run, TrainConfig)):
        for name, f in _options(config).items():
            add(
                group,
                name,
                f.default,
                f.metadata["help"],
                **_form(f.default, f.metadata["choices"], f.metadata["kind"]),
            )
    return parser


def options_given(options: argparse.Namespace) -> dict[str, Any]:
    """By name, several values as a tuple, as the configurations have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()}


def new_run(labels: tuple[str, ...], given: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configurations that the options given ask for."""
    has_backbone = bool(given.get("backbone"))
    square = {"height": FRAME_SIZE, "width": FRAME_SIZE} if has_backbone else {}
    sampling = Sampling(**square | _named(Sampling.model_fields, given))
    size = sampling.height, sampling.width
    modes = feature_modes(*size, given.get("backbone_features", "pooled")) if has_backbone else frame_modes(*size)
    input_modes = tuple(given.get("input_modes") or modes)
    output_modes = tuple(
        given.get("output_modes") or reversed(balanced_modes(given.get("hidden", HIDDEN_SIZE), len(input_modes)))
    )
    check_modes(output_modes, given.get("hidden", math.prod(output_modes)), "output_modes for the hidden size")
    model_config = ModelConfig(
        labels=labels,
        input_modes=input_modes,
        output_modes=output_modes,
        tt_ranks=TTShape.make(input_modes, output_modes, given.get("rank", RANK)).tt_ranks,
        sampling=sampling,
        scaling=SCALING if has_backbone else Scaling(),
        **_named(_options(ModelConfig), given),
    )
    return model_config, TrainConfig(**_named(_options(TrainConfig), given))


def resumed_run(saved: Checkpoint, given: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configurations of the run to resume.

    Raises:
        ValueError: an option given beside --resume that differs; each is named, with both values.
    """
    model, config = saved.model_config, saved.train_config
    rank = given.get("rank", RANK)
    if TTShape.make(model.input_modes, model.output_modes, rank).tt_ranks != model.tt_ranks:
        rank = max(model.tt_ranks)
    has = {
        **{name: getattr(model, name) for name in ("input_modes", "output_modes", *_options(ModelConfig))},
        **{name: getattr(model.sampling, name) for name in Sampling.model_fields},
        **dataclasses.asdict(config),
        "hidden": model.hidden_size,
        "rank": rank,
    }
    more = {"epochs": given["epochs"]} if given.get("epochs", 0) > config.epochs else {}
    more |= _named(["patience"], given)
    has |= more
    if differ := [name for name, value in _named(has, given).items() if value != has[name]]:
        asked, kept = (", ".join(_spelled(name, values[name]) for name in differ) for values in (given, has))
        allowed = "Only --epochs may change, to more of them, and --patience"
        raise ValueError(f"the run to resume has {kept}; got {asked}. {allowed}")
    return model, dataclasses.replace(config, **more)


def _named(names: Iterable[str], given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _options(config: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a configuration that are options of this command."""
    return {f.name: f for f in dataclasses.fields(config) if "help" in f.metadata}


def _spelled(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if value in (None, (), False):
        return f"no {option}"
    if value is True:
        return option
    return f"{option} {' '.join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))}"


def _form(default: object, choices: tuple[str, ...] | None = None, kind: type = str) -> dict[str, Any]:
    """How argparse reads an option, by its default."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+"}
    return {"type": kind if default is None else type(default), "choices": choices}


def _choices(name: str) -> tuple[str, ...]:
    """Of a field of `Sampling`."""
    return typing.get_args(Sampling.model_fields[name].annotation)

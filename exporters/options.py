"""What can be asked of `exporters.to_onnx`, and what of it does not go together."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from exporters.precision import Bounds
from exporters.quantize import Precision
from exporters.recurrence import Target
from exporters.tune import NOISE, NUM_MEASURED
from exporters.verify import TOLERANCES
from ttmodels.checkpoint import Checkpoint, MLPCheckpoint
from ttmodels.commandline import check_output, positive_number

EXAMPLES = """\
examples:
  What the service needs, with the figures of an evaluation:
    python -m exporters.to_onnx runs/mine/best.safetensors -o models/mine/1/model.onnx --metrics runs/mine/test.json
  The fastest on a CPU, and what that costs on clips of your own; no file if it costs more than 1 % of accuracy:
    python -m exporters.to_onnx runs/mine/best.safetensors -o models/mine/2/model.onnx \\
        --precision int8 --evaluate test_clips/ --max-accuracy-loss 0.01
  For a GPU:
    python -m exporters.to_onnx runs/mine/best.safetensors -o models/mine/3/model.onnx --target cuda --precision fp16
  A step graph, which takes a clip in pieces of any length and gives its state from one to the next:
    python -m exporters.to_onnx runs/mine/best.safetensors -o mine_stream.onnx --streaming
What a file holds: python -m exporters.inspect FILE. How fast it is: python -m exporters.benchmark FILE.
"""


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m exporters.to_onnx",
        description=description,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("checkpoint", type=Path, help="a .safetensors file of ttmodels.train")
    add("-o", "--out", type=Path, default=Path("model.onnx"), help="file to write (model.onnx)")
    add("--name", help="the model's name (of NAME/VERSION/model.onnx, else the checkpoint's folder)")
    add("--version", help="the model's version (of NAME/VERSION/model.onnx, else 1)")
    add("--description", default="", help="what the model tells apart, for its users (nothing)")
    add("--temperature", type=positive_number, help="divides the logits before the softmax (the checkpoint's)")
    add(
        "--metrics",
        type=Path,
        action="append",
        default=[],
        help="figures by `ttmodels.evaluate --write` of this checkpoint; may be repeated (none)",
    )
    add(
        "--tolerance",
        type=positive_number,
        help=f"of parity, absolute up to logits of 1 and above relative to the largest "
        f"({', '.join(f'{k} {v:g}' for k, v in TOLERANCES.items())})",
    )
    add("--streaming", action="store_true", help="a graph that takes a clip in pieces, and its state in and out")
    speed = made.add_argument_group(
        "speed",
        f"The plan is the fastest of the cost model's best {NUM_MEASURED}, measured here; of those within\n"
        f"{NOISE - 1:.0%} of the fastest, which is noise, it is the cost model's first.",
    ).add_argument
    speed("--target", choices=get_args(Target), default="cpu", help="what the file is to run on (cpu)")
    speed(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="of the frames' projection, or of the backbone (fp32)",
    )
    speed("--no-tune", action="store_true", help="choose the plan by the cost model alone, and measure none")
    near = made.add_argument_group(
        "how near a lower precision is to fp32", "Past a bound there is no file, and the exit code is 1."
    ).add_argument
    near("--evaluate", type=Path, metavar="DATA", help="clips to compare on, FOLDER/LABEL/CLIP or a list (made ones)")
    near(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="clips by which the numbers of a backbone in int8 are chosen, as those trained on (those of --evaluate)",
    )
    near("--cache", type=Path, help="folder for these clips decoded, kept (a temporary one)")
    for name, meaning in (
        ("min_agreement", "share of clips with fp32's label, of labels told as by fp32 where a clip has several"),
        ("max_probability_difference", "of any label of any clip"),
        ("max_accuracy_loss", "on the clips of --evaluate, of mean AP where a clip has several labels"),
    ):
        near(_option(name), type=float, metavar="SHARE", help=f"{meaning} ({getattr(Bounds, name):g})")
    return made


def check(options: argparse.Namespace) -> None:
    """Pass options that go together, before any work.

    Raises:
        ValueError: an output that is an input, an empty name, or an option that would change nothing; names it.
    """
    check_output("-o", options.out, options.checkpoint, *options.metrics, options.evaluate, options.calibrate)
    for name in ("name", "version"):
        if getattr(options, name) == "":
            raise ValueError(f"{_option(name)}: expected a {name}, got an empty one")
    if options.max_accuracy_loss is not None and options.evaluate is None:
        raise ValueError("--max-accuracy-loss: expected --evaluate DATA beside it, got none")
    if options.cache is not None and options.evaluate is None and options.calibrate is None:
        raise ValueError("--cache: expected --evaluate DATA or --calibrate DATA beside it, got neither")
    if options.calibrate is not None and options.precision != "int8":
        raise ValueError(f"--calibrate: expected --precision int8, got {options.precision}, which it does not change")
    for name in _given_bounds(options):
        if options.precision == "fp32":
            raise ValueError(f"{_option(name)}: expected --precision fp16 or int8, got fp32, which changes nothing")


def check_network(options: argparse.Namespace, saved: Checkpoint | MLPCheckpoint) -> None:
    """Pass options that are for the checkpoint's network.

    Raises:
        ValueError: one that is for models of clips, and the checkpoint is of an MLPClassifier; or for models with a
            backbone.
    """
    if isinstance(saved, Checkpoint):
        if options.calibrate is not None and not saved.model_config.backbone:
            raise ValueError(f"--calibrate: is for models with a backbone, and {options.checkpoint} has none")
        return
    for name, without in (
        ("precision", "fp32"),
        ("target", "cpu"),
        ("streaming", False),
        ("evaluate", None),
        ("calibrate", None),
        ("no_tune", False),
    ):
        if getattr(options, name) != without:
            raise ValueError(f"{_option(name)}: is for models of clips, and {options.checkpoint} is an MLPClassifier")


def bounds_of(options: argparse.Namespace) -> Bounds:
    """Those given, and the usual ones for the rest."""
    return Bounds(**_given_bounds(options))


def name_and_version(options: argparse.Namespace) -> tuple[str, str]:
    """The model's, by the folders of the file, by the options, or by the checkpoint's folder.

    Raises:
        ValueError: an option that contradicts the folders.
    """
    folders = _named_by_folders(options.out)
    if folders is None:
        return options.name or options.checkpoint.resolve().parent.name, options.version or "1"
    for option, folder in zip(("name", "version"), folders, strict=True):
        given = getattr(options, option)
        if given not in (None, folder):
            raise ValueError(
                f"{options.out}: expected --{option} {folder}, as its folders say (NAME/VERSION/model.onnx), "
                f"got {given}; a file that is not called model.onnx may say anything"
            )
    return folders


def _named_by_folders(path: Path) -> tuple[str, str] | None:
    """Name and version of NAME/VERSION/model.onnx; None for a bare model.onnx and for a file called otherwise."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 - as the service, it does not follow links
    if path.name != "model.onnx" or len(path.parts) == 1 or len(parts) < 4:
        return None
    return parts[-3], parts[-2]


def _given_bounds(options: argparse.Namespace) -> dict[str, float]:
    names = ("min_agreement", "max_probability_difference", "max_accuracy_loss")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""Export a checkpoint: `python -m exporters.to_onnx CHECKPOINT [-o model.onnx]`.

Loads the checkpoint, chooses how the train is contracted (the cost model's best few plans are measured), builds the
graph, proves it equal to the model at sizes it never saw, compares a lower precision with fp32, attaches the manifest,
and only then puts the file in its place. On any failure there is no file, and the exit code is 1 where the file would
not be equal to the model, or too far from it, and 2 where the input does not fit.

A file called model.onnx inside folders, NAME/VERSION/model.onnx, takes its name and version from them, as the service
reads them there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from ttmodels.commandline import command, plain, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "onnx", "onnx_ir")

import onnx_ir as ir

from exporters import cuda, mlp, quantize, states, tune
from exporters.graph import build
from exporters.onnx_file import OPSET, serialize, write
from exporters.precision import Bounds, PrecisionError, check_bounds, compare
from exporters.quantize import Precision
from exporters.recurrence import Target
from exporters.report import report
from exporters.verify import TOLERANCE, ParityError, verify
from service import __version__
from service.engine.provider import cuda_fault
from service.manifest import Architecture, Contraction, DataSet, Manifest, Metrics
from ttmodels import checkpoint, contraction
from ttmodels.checkpoint import Checkpoint, MLPCheckpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan
from ttmodels.data.folder import DecodedClips
from ttmodels.evaluate import labelled_clips

TOLERANCES: dict[Precision, float] = {"fp32": TOLERANCE, "fp16": 20 * TOLERANCE, "int8": TOLERANCE}
"""Of parity with the model whose weights are rounded alike: of int8 nothing else is rounded, of fp16 the values are."""

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


def export(
    saved: Checkpoint,
    path: Path,
    *,
    name: str,
    version: str = "1",
    description: str = "",
    metrics: Sequence[Metrics] = (),
    temperature: float = 1.0,
    plan: Plan | None = None,
    precision: Precision = "fp32",
    target: Target = "cpu",
    streaming: bool = False,
    measure: bool = True,
    clips: DecodedClips | None = None,
    bounds: Bounds | None = None,
    tolerance: float | None = None,
) -> Manifest:
    """Write `path` and return its manifest.

    Args:
        plan: of the contraction; chosen for the target without it.
        precision: see `exporters.quantize`.
        streaming: a graph that takes a clip in pieces.
        measure: choose among the cost model's best plans by their times in ONNX Runtime.
        clips: labelled ones to compare the precision with fp32 on; made ones without them.
        bounds: on that comparison.
        tolerance: of parity; by the precision without it.

    Raises:
        ParityError: the graph does not compute what the model does.
        PrecisionError: it is further from fp32 than `bounds` allow.
        ValueError: a precision, target or plan that do not go together, or a name, version or temperature that the
            manifest does not allow. Nothing is written in any of these cases.
    """
    if precision == "int8" and target == "cuda":
        raise ValueError("--precision int8: expected --target cpu, got cuda, whose MatMulInteger takes no uint8 pixels")
    model = saved.model()

    def graph_of(plan: Plan, precision: Precision = precision) -> ir.Model:
        return build(model, plan, precision=precision, target=target, streaming=streaming)

    if plan is None:
        chosen = _choose(model, lambda plan: serialize(graph_of(plan)), precision, target, measure=measure)
    else:
        chosen = _contraction(model, plan, target, measured_on="not measured: the plan was given")
    plan = Plan(chosen.groups, chosen.direction)
    graph = graph_of(plan)
    data = serialize(graph)
    if target == "cuda":
        cuda.check(data)
    carried = states.of(model) if streaming else ()
    parity = verify(
        model if precision == "fp32" else quantize.rounded(model, plan, precision),
        data,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        source=path,
        carried=carried,
    )
    manifest = Manifest(
        name=name,
        version=version,
        description=description,
        labels=model.config.labels,
        sampling=model.config.sampling,
        scaling=model.config.scaling,
        architecture=_architecture(model),
        contraction=chosen,
        states=carried,
        precision=precision,
        opset=OPSET,
        parity=parity,
        temperature=temperature,
        data_set=DataSet(name=saved.progress.data_set, num_clips=saved.progress.num_clips),
        metrics=tuple(metrics),
        checkpoint_sha256=saved.sha256,
        exporter_version=__version__,
    )
    if precision != "fp32" or clips is not None:
        compared = compare(data, serialize(graph_of(plan, "fp32")), clips, manifest)
        check_bounds(compared, bounds or Bounds())
        manifest = manifest.model_copy(update={"precision_report": compared})
    graph.metadata_props.update(manifest.to_metadata())
    write(path, serialize(graph))
    return manifest


def _choose(
    model: ClipClassifier, graph_of: Callable[[Plan], bytes], precision: Precision, target: Target, *, measure: bool
) -> Contraction:
    """The plan for a clip of the model's length on `target`."""
    plans = tune.by_cost(model, precision, target)
    fault = cuda_fault() if target == "cuda" else None
    if not measure or fault:
        return _contraction(model, plans[0], target, measured_on=f"not measured: {fault or 'not asked for'}")
    plan, times = tune.measured(graph_of, plans[: tune.NUM_MEASURED], model.config.sampling.clip_shape, target)
    return _contraction(model, plan, target, measured=tuple(times), measured_on=tune.machine(target))


def _contraction(model: ClipClassifier, plan: Plan, target: Target, **measured: Any) -> Contraction:
    shape, frames_per_clip = model.projection.shape, model.config.sampling.num_frames
    flops = contraction.cost(plan, shape, frames_per_clip).flops * model.rnn.num_directions
    return Contraction(
        groups=plan.groups,
        direction=plan.direction,
        flops_per_frame=flops // frames_per_clip,
        target=target,
        **measured,
    )


def _architecture(model: ClipClassifier) -> Architecture:
    shared = {name: getattr(model.config, name) for name in Architecture.model_fields if hasattr(model.config, name)}
    return Architecture(**shared, num_parameters=model.num_parameters(), compression=model.compression())


def _named_by_folders(path: Path) -> tuple[str, str] | None:
    """Name and version of NAME/VERSION/model.onnx; None for a bare model.onnx and for a file called otherwise."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 - as the service, it does not follow links
    if path.name != "model.onnx" or len(path.parts) == 1 or len(parts) < 4:
        return None
    return parts[-3], parts[-2]


def _name_and_version(options: argparse.Namespace) -> tuple[str, str]:
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


def _read_metrics(path: Path) -> Metrics:
    try:
        return Metrics.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected figures by `ttmodels.evaluate --write`: {plain(error)}") from error


def _mlp(saved: MLPCheckpoint, options: argparse.Namespace, about: dict[str, Any]) -> int:
    for name, asked, only in (
        ("--precision", options.precision, "fp32"),
        ("--target", options.target, "cpu"),
        ("--streaming", options.streaming, False),
        ("--evaluate", options.evaluate, None),
    ):
        if asked != only:
            raise ValueError(f"{name}: is for models of clips, and {options.checkpoint} is an MLPClassifier")
    try:
        manifest = mlp.export(saved, options.out, **about, tolerance=options.tolerance or TOLERANCE)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(mlp.report(manifest, options.out))
    return 0


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.to_onnx",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a .safetensors file of ttmodels.train")
    add("-o", "--out", type=Path, default=Path("model.onnx"), help="file to write (model.onnx)")
    add("--name", help="the model's name (of NAME/VERSION/model.onnx, else the checkpoint's folder)")
    add("--version", help="the model's version (of NAME/VERSION/model.onnx, else 1)")
    add("--description", default="", help="what the model tells apart, for its users (nothing)")
    add("--temperature", type=float, default=1.0, help="divides the logits before the softmax (1)")
    add(
        "--metrics",
        type=Path,
        action="append",
        default=[],
        help="figures by `ttmodels.evaluate --write`; may be repeated (none)",
    )
    add("--tolerance", type=float, help=f"of parity ({', '.join(f'{k} {v:g}' for k, v in TOLERANCES.items())})")
    add("--streaming", action="store_true", help="a graph that takes a clip in pieces, and its state in and out")
    speed = parser.add_argument_group("speed").add_argument
    speed("--target", choices=get_args(Target), default="cpu", help="what the file is to run on (cpu)")
    speed("--precision", choices=get_args(Precision), default="fp32", help="of the frames' projection (fp32)")
    speed("--no-tune", action="store_true", help="choose the plan by the cost model alone, and measure none")
    near = parser.add_argument_group(
        "how near a lower precision is to fp32", "Past a bound there is no file, and the exit code is 1."
    ).add_argument
    near("--evaluate", type=Path, metavar="FOLDER", help="clips to compare on, FOLDER/LABEL/CLIP (made ones)")
    near("--cache", type=Path, help="folder for these clips decoded, kept (a temporary one)")
    bounds = Bounds()
    near(
        "--min-agreement",
        type=float,
        default=bounds.min_agreement,
        help=f"share of clips with fp32's label ({bounds.min_agreement:g})",
    )
    near(
        "--max-probability-difference",
        type=float,
        default=bounds.max_probability_difference,
        help=f"of any label of any clip ({bounds.max_probability_difference:g})",
    )
    near(
        "--max-accuracy-loss",
        type=float,
        default=bounds.max_accuracy_loss,
        help=f"on the clips of --evaluate ({bounds.max_accuracy_loss:g})",
    )
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        raise ValueError(f"-o: expected a file to write, found a folder at {options.out}")
    name, version = _name_and_version(options)
    metrics = [_read_metrics(path) for path in options.metrics]
    bounds = Bounds(options.min_agreement, options.max_probability_difference, options.max_accuracy_loss)
    saved = checkpoint.load_any(options.checkpoint)
    about: dict[str, Any] = {
        "name": name,
        "version": version,
        "description": options.description,
        "metrics": metrics,
        "temperature": options.temperature,
    }
    if isinstance(saved, MLPCheckpoint):
        return _mlp(saved, options, about)
    with contextlib.ExitStack() as stack:
        clips = None
        if options.evaluate is not None:
            config = saved.model_config
            decoded = labelled_clips(options.evaluate, config.labels, config.sampling, options.cache)
            clips = stack.enter_context(decoded)
        try:
            manifest = export(
                saved,
                options.out,
                **about,
                precision=options.precision,
                target=options.target,
                streaming=options.streaming,
                measure=not options.no_tune,
                clips=clips,
                bounds=bounds,
                tolerance=options.tolerance,
            )
        except (ParityError, PrecisionError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(report(manifest, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttmodels.commandline import command, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "onnx", "onnx_ir")

import onnx_ir as ir

from exporters import cuda, int8_backbone, metrics, mlp, options, quantize, states, tune
from exporters.graph import build
from exporters.int8_backbone import Step
from exporters.onnx_file import OPSET, serialize, write
from exporters.precision import Bounds, PrecisionError, check_bounds, compare
from exporters.quantize import Precision
from exporters.recurrence import Target
from exporters.report import report
from exporters.verify import TOLERANCES, ParityError, verify
from service import __version__
from service.engine.provider import cuda_fault
from service.manifest import Architecture, Contraction, DataSet, Manifest, Metrics
from ttmodels import checkpoint, contraction
from ttmodels.backbone import SHA256
from ttmodels.checkpoint import Checkpoint, MLPCheckpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan
from ttmodels.data.decoded import DecodedClips
from ttmodels.evaluate import labelled_clips


def export(
    saved: Checkpoint,
    path: Path,
    *,
    name: str,
    version: str = "1",
    description: str = "",
    metrics: Sequence[Metrics] = (),
    temperature: float | None = None,
    plan: Plan | None = None,
    precision: Precision = "fp32",
    target: Target = "cpu",
    streaming: bool = False,
    measure: bool = True,
    clips: DecodedClips | None = None,
    calibrate_on: DecodedClips | None = None,
    bounds: Bounds | None = None,
    tolerance: float | None = None,
) -> Manifest:
    """Write `path` and return its manifest.

    Args:
        temperature: the checkpoint's without it.
        plan: of the contraction; chosen for the target without it.
        precision: see `exporters.quantize`.
        streaming: a graph that takes a clip in pieces.
        measure: choose among the cost model's best plans by their times in ONNX Runtime.
        clips: labelled ones to compare the precision with fp32 on; made ones without them.
        calibrate_on: clips by which a backbone's steps are chosen at int8; those of `clips` without them.
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
    steps = _backbone_steps(model, precision, calibrate_on or clips)

    def graph_of(plan: Plan, precision: Precision = precision) -> ir.Model:
        return build(model, plan, precision=precision, target=target, streaming=streaming, backbone_steps=steps)

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
        _rounded(model, plan, precision, steps),
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
        task=model.config.task,
        sampling=model.config.sampling,
        scaling=model.config.scaling,
        architecture=_architecture(model),
        contraction=chosen,
        states=carried,
        precision=precision,
        opset=OPSET,
        parity=parity,
        temperature=saved.progress.temperature if temperature is None else temperature,
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


def _backbone_steps(
    model: ClipClassifier, precision: Precision, clips: DecodedClips | None
) -> Mapping[str, Step] | None:
    """Of a backbone that is to be in int8."""
    if model.backbone is None or precision == "fp32":
        return None
    if precision == "fp16":
        raise ValueError("--precision fp16: expected fp32 or int8 of a model with a backbone")
    if clips is None:
        raise ValueError(
            "--precision int8: the numbers of a backbone are chosen by what it makes of clips: expected "
            "--calibrate DATA or --evaluate DATA, got neither"
        )
    return int8_backbone.calibrate(model.backbone, (frames[0] for frames, _ in clips.batches(1)))


def _rounded(
    model: ClipClassifier, plan: Plan, precision: Precision, steps: Mapping[str, Step] | None
) -> ClipClassifier:
    """With the weights and numbers of the file."""
    if precision == "fp32":
        return model
    return quantize.rounded(model, plan, precision) if steps is None else int8_backbone.rounded(model, steps)


def _choose(
    model: ClipClassifier, graph_of: Callable[[Plan], bytes], precision: Precision, target: Target, *, measure: bool
) -> Contraction:
    """The plan for a clip of the model's length on `target`."""
    plans = tune.by_cost(model, precision, target)
    fault = cuda_fault() if target == "cuda" else None
    if model.backbone is not None:
        fault = "a backbone takes most of the time, and the same by every plan"
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
    if model.backbone is not None:
        shared |= {"backbone_weights": model.backbone.num_weights, "backbone_sha256": SHA256}
    return Architecture(**shared, num_parameters=model.num_parameters(), compression=model.compression())


@command
def main(arguments: Sequence[str] | None = None) -> int:
    given = options.parser(__doc__).parse_args(arguments)
    options.check(given)
    name, version = options.name_and_version(given)
    bounds = options.bounds_of(given)
    saved = checkpoint.load_any(given.checkpoint)
    options.check_network(given, saved)
    about: dict[str, Any] = {
        "name": name,
        "version": version,
        "description": given.description,
        "metrics": metrics.read(given.metrics, saved, given.temperature),
        "temperature": given.temperature,
    }
    try:
        if isinstance(saved, MLPCheckpoint):
            of_mlp = mlp.export(saved, given.out, **about, tolerance=given.tolerance or TOLERANCES["fp32"])
            print(mlp.report(of_mlp, given.out))
            return 0
        with _clips(given.evaluate, given, saved) as clips, _clips(given.calibrate, given, saved, "train") as others:
            manifest = export(
                saved,
                given.out,
                **about,
                precision=given.precision,
                target=given.target,
                streaming=given.streaming,
                measure=not given.no_tune,
                clips=clips,
                calibrate_on=others,
                bounds=bounds,
                tolerance=given.tolerance,
            )
    except (ParityError, PrecisionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(manifest, given.out))
    return 0


def _clips(
    data: Path | None, given: argparse.Namespace, saved: Checkpoint, split: str = "test"
) -> contextlib.AbstractContextManager[DecodedClips | None]:
    """Those of an option, decoded, for a block."""
    if data is None:
        return contextlib.nullcontext()
    config = saved.model_config
    return labelled_clips(data, config.labels, config.sampling, given.cache, task=config.task, split=split)


if __name__ == "__main__":
    sys.exit(main())

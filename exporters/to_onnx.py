"""Export a checkpoint: `python -m exporters.to_onnx CHECKPOINT [-o model.onnx]`.

Loads the checkpoint, plans the contraction, builds the graph, proves it equal to the model at sizes it never saw,
attaches the manifest, and only then puts the file in its place. On any failure there is no file, and the exit code is
1 where the file would not be equal to the model, 2 where the input does not fit.

A file called model.onnx inside folders, NAME/VERSION/model.onnx, takes its name and version from them, as the service
reads them there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ttmodels.commandline import command, plain, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "onnx", "onnx_ir")

import onnx
import onnx_ir as ir
from onnx import checker

from exporters.graph import OPSET, build
from exporters.verify import TOLERANCE, ParityError, verify
from service import __version__
from service.manifest import Architecture, Contraction, DataSet, Manifest, Metrics
from ttmodels import checkpoint, contraction
from ttmodels.atomic import in_place_of
from ttmodels.checkpoint import Checkpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan


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
    tolerance: float = TOLERANCE,
) -> Manifest:
    """Write `path` and return its manifest.

    Raises:
        ParityError: the graph does not compute what the model does; nothing is written.
        pydantic.ValidationError: a name, version or temperature that the manifest does not allow.
    """
    model = saved.model()
    shape = model.projection.shape
    frames_per_clip = model.config.sampling.num_frames
    plan = plan or contraction.choose_plan(shape, frames_per_clip, merged_once=True)
    graph = build(model, plan)
    parity = verify(model, _serialize(graph), tolerance=tolerance, source=path)
    manifest = Manifest(
        name=name,
        version=version,
        description=description,
        labels=model.config.labels,
        sampling=model.config.sampling,
        scaling=model.config.scaling,
        architecture=_architecture(model),
        contraction=Contraction(
            groups=plan.groups,
            direction=plan.direction,
            flops_per_frame=contraction.cost(plan, shape, frames_per_clip).flops // frames_per_clip,
        ),
        opset=OPSET,
        parity=parity,
        temperature=temperature,
        data_set=DataSet(name=saved.progress.data_set, num_clips=saved.progress.num_clips),
        metrics=tuple(metrics),
        checkpoint_sha256=saved.sha256,
        exporter_version=__version__,
    )
    graph.metadata_props.update(manifest.to_metadata())
    data = _serialize(graph)
    try:
        with in_place_of(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror}") from error
    return manifest


def _architecture(model: ClipClassifier) -> Architecture:
    config = model.config
    return Architecture(
        cell=config.cell,
        input_modes=config.input_modes,
        output_modes=config.output_modes,
        tt_ranks=config.tt_ranks,
        hidden_size=config.hidden_size,
        num_parameters=model.num_parameters(),
        compression=model.compression(),
    )


def _serialize(graph: ir.Model) -> bytes:
    proto: onnx.ModelProto = ir.to_proto(graph)
    checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def report(manifest: Manifest, path: Path) -> str:
    """What was written, for a person."""
    a, c, s = manifest.architecture, manifest.contraction, manifest.sampling
    saved = a.compression
    lines = [
        f"wrote       {path}, {path.stat().st_size / 1024:,.0f} KiB, opset {manifest.opset}, {manifest.precision}",
        f"model       {manifest.name} version {manifest.version}, {len(manifest.labels)} classes",
        f"clip        {s.num_frames} frames of {s.width}x{s.height}, {s.policy} in time",
        f"TT-{a.cell.upper():<8} {a.input_modes} -> {a.output_modes}, ranks {a.tt_ranks}",
        f"size        {a.num_parameters:,} parameters; dense is {saved.input_to_hidden:,.0f} (input-to-hidden), "
        f"{saved.rnn:,.0f} (RNN), {saved.model:,.0f} (model) times larger",
        f"plan        cores in groups {c.groups}, {c.direction.replace('_', ' ')}, "
        f"{c.flops_per_frame / 1e6:,.1f} MFLOP a frame",
        f"parity      largest difference to torch {manifest.parity.max_abs_error:.2g} "
        f"(at most {manifest.parity.tolerance:g}) at {len(manifest.parity.sizes)} sizes of batch and time",
    ]
    lines += [f"accuracy    {m.accuracy:.4f} on {m.num_clips} clips of {m.split}" for m in manifest.metrics]
    return "\n".join(lines)


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


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.to_onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file of ttmodels.train")
    parser.add_argument("-o", "--out", type=Path, default=Path("model.onnx"), help="file to write (model.onnx)")
    parser.add_argument("--name", help="the model's name (of NAME/VERSION/model.onnx, else the checkpoint's folder)")
    parser.add_argument("--version", help="the model's version (of NAME/VERSION/model.onnx, else 1)")
    parser.add_argument("--description", default="", help="what the model tells apart, for its users (nothing)")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits before the softmax (1)")
    parser.add_argument(
        "--metrics",
        type=Path,
        action="append",
        default=[],
        help="figures by `ttmodels.evaluate --write`; may be repeated (none)",
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"of parity ({TOLERANCE:g})")
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        raise ValueError(f"-o: expected a file to write, found a folder at {options.out}")
    name, version = _name_and_version(options)
    metrics = [_read_metrics(path) for path in options.metrics]
    try:
        manifest = export(
            checkpoint.load(options.checkpoint),
            options.out,
            name=name,
            version=version,
            description=options.description,
            metrics=metrics,
            temperature=options.temperature,
            tolerance=options.tolerance,
        )
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(manifest, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

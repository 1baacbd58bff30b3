"""Export a checkpoint: `python -m exporters.to_onnx CHECKPOINT [-o model.onnx]`.

Loads the checkpoint, plans the contraction, builds the graph, proves it equal to the model at sizes it never saw,
attaches the manifest, and only then puts the file in its place. On any failure there is no file and the exit code
is not 0.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import checker
from pydantic import ValidationError

from exporters.graph import OPSET, build
from exporters.verify import TOLERANCE, verify
from service import __version__
from service.manifest import Architecture, Contraction, DataSet, Manifest, Metrics
from ttmodels import checkpoint, contraction
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
    _write(path, _serialize(graph))
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


def _write(path: Path, data: bytes) -> None:
    """All of the file or nothing: an interruption or a full disk leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.to_onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file of ttmodels.train")
    parser.add_argument("-o", "--out", type=Path, default=Path("model.onnx"), help="file to write (model.onnx)")
    parser.add_argument("--name", help="the model's name; the folder of the checkpoint without it")
    parser.add_argument("--version", default="1")
    parser.add_argument("--description", default="")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits before the softmax")
    parser.add_argument(
        "--metrics", type=Path, nargs="*", default=[], help="figures written by `ttmodels.evaluate --write`"
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"of parity ({TOLERANCE:g})")
    options = parser.parse_args(arguments)
    try:
        saved = checkpoint.load(options.checkpoint)
        manifest = export(
            saved,
            options.out,
            name=options.name or options.checkpoint.resolve().parent.name,
            version=options.version,
            description=options.description,
            metrics=[Metrics.model_validate_json(file.read_text()) for file in options.metrics],
            temperature=options.temperature,
            tolerance=options.tolerance,
        )
    except (ValueError, OSError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(manifest, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

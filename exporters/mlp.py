"""An MLPClassifier as an ONNX file: images or feature vectors in, logits out. The batch is dynamic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from exporters import activations, onnx_file, projection
from exporters.builder import Builder, named, tensor
from exporters.projection import Reading
from exporters.report import parity
from exporters.timing import open_session
from exporters.verify import THREADS, TOLERANCE, difference
from service import __version__
from service.manifest import DataSet, Metrics, MLPManifest, Parity, TTLayer
from ttmodels.checkpoint import MLPCheckpoint
from ttmodels.contraction import Plan, choose_plan
from ttmodels.mlp import MLPClassifier

BATCHES = (*range(1, 17), 23, 32, 50, 64)
"""Sizes of the comparisons with torch."""


def export(
    saved: MLPCheckpoint,
    path: Path,
    *,
    name: str,
    version: str = "1",
    description: str = "",
    metrics: Sequence[Metrics] = (),
    temperature: float | None = None,
    tolerance: float = TOLERANCE,
) -> MLPManifest:
    """Write `path` and return its manifest. Each layer's plan is the cost model's for one row; the
    temperature is the checkpoint's where none is given.

    Raises:
        ParityError: the graph does not compute what the model does; nothing is written.
        pydantic.ValidationError: a name, version or temperature that the manifest does not allow.
    """
    model = saved.model()
    plans = [choose_plan(layer.shape, 1, merged_once=True) for layer in model.trains]
    graph = build(model, plans)
    config = model.config
    manifest = MLPManifest(
        name=name,
        version=version,
        description=description,
        labels=config.labels,
        reads="images" if model.reads_images else "features",
        input_shape=config.input_shape,
        mean=config.mean,
        std=config.std,
        layers=tuple(
            TTLayer(**dataclasses.asdict(shape), groups=plan.groups, direction=plan.direction)
            for shape, plan in zip(config.layers, plans, strict=True)
        ),
        activation=config.activation,
        num_parameters=model.num_parameters(),
        compression=model.compression(),
        opset=onnx_file.OPSET,
        parity=verify(model, onnx_file.serialize(graph), tolerance=tolerance, source=path),
        temperature=saved.progress.temperature if temperature is None else temperature,
        data_set=DataSet(name=saved.progress.data_set, num_clips=saved.progress.num_clips),
        metrics=tuple(metrics),
        checkpoint_sha256=saved.sha256,
        exporter_version=__version__,
    )
    graph.metadata_props.update(manifest.to_metadata())
    onnx_file.write(path, onnx_file.serialize(graph))
    return manifest


def build(model: MLPClassifier, plans: Sequence[Plan]) -> ir.Model:
    """The model's graph, each layer contracted by its plan; weights are copied from the model as they are now."""
    graph = Builder()
    name, dtype = ("images", ir.DataType.UINT8) if model.reads_images else ("features", ir.DataType.FLOAT)
    given = tensor(name, dtype, "batch", *model.config.input_shape)
    value = given
    if not model.reads_images:
        scaled = graph.op("Mul", given, graph.constant(model.input_scale, "input_scale"))
        value = graph.op("Add", scaled, graph.constant(model.input_shift, "input_shift"))
    for number, (layer, plan) in enumerate(zip(model.trains, plans, strict=True)):
        name = f"layers.{number}"
        if number == 0 and model.reads_images:
            scale, shift = model.input_scale, model.input_shift
            value = projection.emit_pixels(graph, layer, Reading(plan), value, scale, shift, name)
        else:
            value = projection.emit(graph, layer, plan, value, name)
        value = activations.emit(graph, layer.activation, value)
    weight, bias = graph.constant(model.head.weight.T, "head.weight"), graph.constant(model.head.bias, "head.bias")
    logits = graph.op("Gemm", value, weight, bias)
    named(logits, "logits", ir.DataType.FLOAT, "batch", len(model.config.labels))
    return onnx_file.finished(graph, [given], [logits])


@torch.inference_mode()
def verify(model: MLPClassifier, onnx_bytes: bytes, *, tolerance: float, source: Path | str) -> Parity:
    """Largest absolute difference of logits over BATCHES, on noise.

    Raises:
        ParityError: a difference above `tolerance` as `exporters.verify` has it, a wrong shape, or something that is
            not a number.
    """
    session = open_session(onnx_bytes, THREADS)
    rng = np.random.default_rng(0)
    worst = largest = 0.0
    for batch in BATCHES:
        shape = (batch, *model.config.input_shape)
        if model.reads_images:
            given = rng.integers(0, 256, shape, np.uint8)
        else:
            given = (rng.standard_normal(shape) * model.config.std + model.config.mean).astype(np.float32)
        (got,) = session.run(["logits"], {session.get_inputs()[0].name: given})
        want = model(torch.from_numpy(given)).numpy()
        worst = max(worst, difference(np.asarray(got), want, tolerance, f"{source}: logits at batch {batch}"))
        largest = max(largest, float(np.abs(want).max()))
    sizes = tuple((batch,) for batch in BATCHES)
    return Parity(max_abs_error=worst, largest_logit=largest, tolerance=tolerance, sizes=sizes)


def report(manifest: MLPManifest, path: Path) -> str:
    """What was written, for a person."""
    shape = " x ".join(map(str, manifest.input_shape))
    lines = [
        f"wrote       {path}, {path.stat().st_size / 1024:,.0f} KiB, opset {manifest.opset}",
        f"model       {manifest.name} version {manifest.version}, {len(manifest.labels)} classes",
        f"input       {manifest.reads} of {shape}",
    ]
    lines += [
        f"TT layer    {layer.input_modes} -> {layer.output_modes}, ranks {layer.tt_ranks}, cores in groups "
        f"{layer.groups}, {layer.direction.replace('_', ' ')}"
        for layer in manifest.layers
    ]
    lines += [
        f"size        {manifest.num_parameters:,} parameters; dense is {manifest.compression:,.1f} times larger",
        parity(manifest.parity, "the batch"),
    ]
    lines += [f"accuracy    {m.accuracy:.4f} on {m.num_clips} of {m.split}" for m in manifest.metrics]
    return "\n".join(lines)

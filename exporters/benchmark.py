"""Time a model file against its likes: `python -m exporters.benchmark model.onnx --against dense,chain`.

`dense` is the same model with its train as one matrix, `chain` with one core after the other, both in fp32; a name that
ends in .onnx is another file of the same clips. Times are medians of whole runs in ONNX Runtime on the CPU, uint8
frames in, logits out. Contenders take turns, several runs each, so that whatever else the machine does hits all alike;
threads do not spin while they wait, as in the service.

With --checkpoint, dense and chain hold the weights that the file was exported from, and the table shows how far their
logits lie from the file's. Without it they hold random weights of the same shapes, which take the same time: the file
has its cores merged, so they cannot be had from it.

share of bandwidth   What a run has to move at least (inputs, weights and outputs, each once) in its time, over the
                     bandwidth of the memory: that at which numpy reads 256 MiB in the same turns, its largest byte, on
                     one thread or on all, whichever is faster. Such an array lies in no usual cache; what a run moves
                     may, and then its share can be above 1.
reading the frames   The frames of the run read alike, from wherever they lie: no run takes less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ttmodels.commandline import check_output, command, positive, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "onnx", "onnx_ir")

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from exporters.graph import build
from exporters.inspect import manifest_of, read
from exporters.timing import RUNS_A_TURN, feeds, in_turns, open_session
from exporters.weights import weight_bytes
from service.engine.signature import check, signature
from service.errors import InvalidModel
from service.manifest import Manifest
from ttmodels import checkpoint
from ttmodels.atomic import in_place_of
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig
from ttmodels.contraction import Plan

PLANS: dict[str, Callable[[int], Plan]] = {
    "dense": lambda num_cores: Plan((num_cores,)),
    "chain": lambda num_cores: Plan((1,) * num_cores),
}


MEMORY_BYTES = 256 * 1024 * 1024
"""What is read for the memory's bandwidth: more than last-level caches hold."""


@dataclass(frozen=True)
class Contender:
    """A model to time."""

    name: str
    source: Path | bytes
    num_weight_bytes: int
    same_weights: bool
    """As the file that all are measured against."""


@dataclass(frozen=True)
class Figures:
    """Of one contender at one batch size."""

    batch: int
    contender: str
    median_ms: float
    ratio: float
    """Its median over that of the file."""
    bandwidth_share: float
    """Of the memory's bandwidth, measured in the same turns."""
    difference: float | None = None
    """Largest of its logits to the file's; None where it holds other weights."""


def contenders(path: Path, against: Sequence[str], saved: Path | None = None) -> tuple[Manifest, list[Contender]]:
    """What the file says of itself; the file, and those that it is measured against.

    Raises:
        ValueError: an unknown name, a broken file, a checkpoint that the file was not exported from.
    """
    if unknown := [name for name in against if name not in PLANS and not name.endswith(".onnx")]:
        raise ValueError(f"--against: expected {', '.join(PLANS)} or a file that ends in .onnx, got {unknown[0]!r}")
    manifest = manifest_of(read(path), path, Manifest)
    for index, name in enumerate(against):
        if name in against[:index] or (name not in PLANS and Path(name).exists() and path.samefile(name)):
            raise ValueError(f"--against: expected each contender once, got {name} twice")
    found = [_file(path, manifest)]
    if PLANS.keys() & set(against):
        model = _exported_from(saved, manifest) if saved else ClipClassifier(_like(manifest)).eval()
    for name in against:
        found.append(_planned(name, model, saved is not None) if name in PLANS else _file(Path(name), manifest))
    return manifest, found


def _file(path: Path, like: Manifest) -> Contender:
    model = read(path)
    manifest = manifest_of(model, path, Manifest)
    if manifest.sampling.clip_shape != like.sampling.clip_shape:
        raise ValueError(
            f"--against: expected a file that reads clips of {_spell(like)}, got {path}, which reads {_spell(manifest)}"
        )
    try:
        check(open_session(path, 1), signature(manifest), path)
    except InvalidModel as error:
        raise ValueError(f"the graph does not fit its manifest: {error}") from error
    same = manifest.checkpoint_sha256 == like.checkpoint_sha256
    return Contender(str(path), path, weight_bytes(model.graph), same)


def _spell(manifest: Manifest) -> str:
    return " x ".join(map(str, manifest.sampling.clip_shape))


def _planned(name: str, model: ClipClassifier, same_weights: bool) -> Contender:
    graph: onnx.ModelProto = ir.to_proto(build(model, PLANS[name](model.projection.shape.num_cores)))
    return Contender(name, graph.SerializeToString(), weight_bytes(graph.graph), same_weights)


def _exported_from(saved: Path, manifest: Manifest) -> ClipClassifier:
    loaded = checkpoint.load(saved)
    if loaded.sha256 != manifest.checkpoint_sha256:
        raise ValueError(
            f"--checkpoint: expected the one that the file was exported from, its SHA-256 "
            f"{manifest.checkpoint_sha256}; {saved} has {loaded.sha256}"
        )
    return loaded.model()


def _like(manifest: Manifest) -> ModelConfig:
    """A configuration of the same shapes: what the manifest says of the architecture under a configuration's names."""
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    architecture = {name: value for name, value in manifest.architecture if name in known}
    return ModelConfig(manifest.labels, sampling=manifest.sampling, scaling=manifest.scaling, **architecture)


# ---- timing


def measure(
    clip_shape: tuple[int, ...], entries: Sequence[Contender], batch: int, *, threads: int = 2, rounds: int = 10
) -> list[Figures]:
    """Time reading a batch of noise, reading memory, and each contender's run on the batch."""
    frames = np.random.default_rng(0).integers(0, 256, (batch, *clip_shape), np.uint8)
    sessions = {entry.name: open_session(entry.source, threads) for entry in entries}
    fed = {name: feeds(session, frames) for name, session in sessions.items()}

    def run(name: str) -> np.ndarray:
        return np.asarray(sessions[name].run(["logits"], fed[name])[0])

    memory = np.ones(MEMORY_BYTES, np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        reading = {
            f"reading {what}, {count} thread{'s' if count > 1 else ''}": _reader(array, count, pool)
            for what, array in (("the frames", frames), ("memory", memory))
            for count in sorted({1, threads})
        }
        running = {name: lambda name=name: run(name) for name in sessions}
        medians = {name: statistics.median(times) for name, times in in_turns(reading | running, rounds).items()}
    read_bytes = {name: memory.nbytes if "memory" in name else frames.nbytes for name in reading}
    bytes_per_s = max(memory.nbytes / medians[name] for name in reading if "memory" in name)

    def figures(name: str, num_bytes: int, difference: float | None = None) -> Figures:
        share = num_bytes / medians[name] / bytes_per_s
        return Figures(batch, name, 1e3 * medians[name], medians[name] / medians[entries[0].name], share, difference)

    expected = run(entries[0].name)
    found = [figures(name, read_bytes[name]) for name in reading]
    for entry in entries:
        logits = run(entry.name)
        difference = float(np.abs(logits - expected).max()) if entry.same_weights else None
        found.append(figures(entry.name, frames.nbytes + entry.num_weight_bytes + logits.nbytes, difference))
    return found


def _reader(array: np.ndarray, threads: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """Looks at every byte."""
    if threads == 1:
        return array.max
    parts = np.array_split(array.reshape(-1), threads)
    return lambda: list(pool.map(np.max, parts))


# ---- for a person


def table(rows: Sequence[Figures]) -> str:
    """A line for each of them."""
    cells = [("batch", "", "median ms", "times the file", "share of bandwidth", "logits differ by")]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.2g}"
        numbers = (f"{row.median_ms:.3f}", f"{row.ratio:.2f}", f"{row.bandwidth_share:.3f}", difference)
        cells.append((str(row.batch), row.contender, *numbers))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column == 1 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _names(text: str) -> list[str]:
    names = text.split(",")
    if "" in names:
        raise argparse.ArgumentTypeError(f"expected {', '.join(PLANS)} or files, with commas between, got {text!r}")
    return names


def _batches(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an exported file")
    parser.add_argument(
        "--against", type=_names, default=["dense", "chain"], help="dense, chain, or files (dense,chain)"
    )
    parser.add_argument("--checkpoint", type=Path, help="what the file was exported from (random weights)")
    parser.add_argument("--batch", type=_batches, default=[1, 16], help="clips in a run (1,16)")
    parser.add_argument("--threads", type=positive, default=2, help="of ONNX Runtime (2)")
    parser.add_argument("--rounds", type=positive, default=10, help=f"turns of {RUNS_A_TURN} runs for each (10)")
    parser.add_argument("--json", type=Path, help="a file to write the figures to, too")
    options = parser.parse_args(arguments)
    files = [Path(name) for name in options.against if name not in PLANS]
    check_output("--json", options.json, options.model, options.checkpoint, *files)
    manifest, entries = contenders(options.model, options.against, options.checkpoint)
    clip, load = manifest.sampling.clip_shape, f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    where = f"onnxruntime {onnxruntime.__version__} on the CPU, {options.threads} threads, load {load} at the start"
    with in_place_of(options.json) if options.json else contextlib.nullcontext() as part:  # before the work
        print(f"{options.model}, {manifest.precision}; clips of {_spell(manifest)}; {where}", flush=True)
        rows = [
            row
            for batch in options.batch
            for row in measure(clip, entries, batch, threads=options.threads, rounds=options.rounds)
        ]
        print(table(rows))
        if part is not None:
            figures = [dataclasses.asdict(row) for row in rows]
            document = {"model": str(options.model), "machine": where, "figures": figures}
            part.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

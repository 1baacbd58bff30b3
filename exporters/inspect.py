"""Look into a model file: `python -m exporters.inspect model.onnx`.

Prints what the manifest says, what the graph is made of, what one clip costs it (multiply-accumulates, bytes), and on
which provider ONNX Runtime runs each node. Works on any ONNX file. Dimensions that the file leaves open are 1 unless
--size says otherwise, but for `time`, which is the number of frames of the manifest.

The cost is counted op by op, as the file has them: ONNX Runtime may do with less where it fuses two.

Exit code: 0, or 2 where the file is broken, no ONNX file, or one that ONNX Runtime does not load.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ttmodels.commandline import command, positive, require

if __name__ == "__main__":  # before the imports that need it
    require("onnx")

import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporters.cost import Cost, bodies, cost, fed_inputs, open_dimensions, weight_bytes
from service.engine.provider import CPU, CUDA, cuda_fault
from service.errors import InvalidModel
from service.manifest import Manifest, MLPManifest, ModelFile

M = TypeVar("M", bound=ModelFile)

MLP_INPUTS = {"images", "features"}
WIDTH = 100
"""Longer values go on in the next line."""


def read(path: Path) -> onnx.ModelProto:
    """The file without the weights that it keeps elsewhere.

    Raises:
        ValueError: no ONNX file, or a broken one.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path}: expected an ONNX file, got something else or a broken one") from error
    if not model.graph.node:
        raise ValueError(f"{path}: expected an ONNX file with a graph, got one of {path.stat().st_size} bytes without")
    return model


def manifest_of(model: onnx.ModelProto, path: Path, kind: type[M]) -> M:
    """What the file says of itself.

    Raises:
        ValueError: nothing, what this version does not read, or that it is of another kind.
    """
    try:
        return kind.from_metadata({entry.key: entry.value for entry in model.metadata_props}, source=str(path))
    except InvalidModel as error:
        raise ValueError(str(error)) from error


def assignment(path: Path | bytes, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[str, str, str]]:
    """(provider, op, name) of every node that ONNX Runtime runs, after its basic simplifications, by its own account.

    Raises:
        ValueError: CUDA cannot be used here, or ONNX Runtime does not load the file.
    """
    if device == "cuda" and (fault := cuda_fault()):
        raise ValueError(f"expected CUDA, which cannot be used here: {fault}")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 4
    providers = [CUDA, CPU] if device == "cuda" else [CPU]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # it has a class of its own for every code
        raise ValueError(f"ONNX Runtime {onnxruntime.__version__} does not load it: {_one_line(error)}") from error
    return [
        (subgraph.ep_name, node.op_type, node.name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


# ---- for a person


def sections(path: Path, sizes: Mapping[str, int], device: Literal["cpu", "cuda"]) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of each part of the report, as they become known."""
    model = read(path)
    kind = MLPManifest if MLP_INPUTS & {value.name for value in fed_inputs(model.graph)} else Manifest
    frames = 0
    try:
        manifest: ModelFile = manifest_of(model, path, kind)
    except ValueError as error:
        yield "manifest", [str(error)]
    else:
        frames = manifest.sampling.num_frames if isinstance(manifest, Manifest) else 0
        yield "manifest", list(_readable(manifest.model_dump()))
    yield "graph", _graph(model, path)
    chosen = {**dict.fromkeys(open_dimensions(model), 1), **({"time": frames} if frames else {}), **sizes}
    at = ", ".join(f"{name} {size}" for name, size in chosen.items())
    yield f"cost{at and f' at {at}'}", _cost(cost(model, chosen), math.prod(chosen.values()) if frames else 1)
    nodes = assignment(path, device)
    counts = Counter(provider for provider, _, _ in nodes)
    yield f"nodes on {', '.join(f'{provider} {count}' for provider, count in counts.items())}", _columns(nodes)


def _readable(fields: Mapping[str, object]) -> Iterator[str]:
    """Fields that say something, one a line; nested ones below their name."""
    width = max(map(len, fields))
    for name, value in fields.items():
        nested = value if isinstance(value, tuple) else (value,)
        if value in (None, "", (), {}):
            continue
        if all(isinstance(part, Mapping) for part in nested):
            for part in nested:
                yield name
                yield from ("  " + line for line in _readable(part))
        else:
            lines = textwrap.wrap(_plain(value), WIDTH) or [""]
            yield from (f"{name if not i else '':<{width}}  {line}" for i, line in enumerate(lines))


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        rows = any(isinstance(part, tuple) for part in value)
        return ("; " if rows else ", ").join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _graph(model: onnx.ModelProto, path: Path) -> list[str]:
    weights = model.graph.initializer
    num_values = sum(math.prod(weight.dims) for weight in weights)
    nodes = [node for graph in (model.graph, *bodies(model.graph)) for node in graph.node]
    ops = Counter(f"{node.domain and node.domain + '.'}{node.op_type}" for node in nodes)
    return _columns(
        [
            (
                "file",
                f"{path}, {path.stat().st_size / 1024:,.0f} KiB, by {model.producer_name or 'an unnamed program'}",
            ),
            *(("opset", f"{opset.version} of {opset.domain or 'ai.onnx'}") for opset in model.opset_import),
            *(("input", _signature(value)) for value in fed_inputs(model.graph)),
            *(("output", _signature(value)) for value in model.graph.output),
            ("ops", f"{ops.total()}: {', '.join(f'{op} {count}' for op, count in ops.most_common())}"),
            ("parameters", f"{num_values:,} values in {len(weights)} tensors, {_bytes(weight_bytes(model.graph))}"),
        ]
    )


def _signature(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{dims}]"


def _cost(found: Cost, num_frames: int) -> list[str]:
    """A column for a run, and one for each of its frames where the file reads frames."""
    counts = {"MACs": found.macs.total()} | {f"  {op}": macs for op, macs in found.macs.most_common()}
    amounts = {"activations read and written": found.activation_bytes, "weights read": found.weight_bytes}

    def row(name: str, spell: Callable[[float], str], amount: int) -> tuple[str, ...]:
        return (name, spell(amount), spell(amount / num_frames)) if num_frames > 1 else (name, spell(amount))

    rows = [("", "a run", "a frame")[: 3 if num_frames > 1 else 2]]
    rows += [row(name, "{:,.0f}".format, amount) for name, amount in counts.items()]
    rows += [row(name, _bytes, amount) for name, amount in amounts.items()]
    lines = _columns(rows)
    if found.left_out:
        ops = ", ".join(f"{op} {count}" for op, count in found.left_out.items())
        lines.append(f"left out, since their sizes are known only when they run: {ops}")
    return lines


def _bytes(amount: float) -> str:
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if amount < 1024:
            return f"{amount:,.{digits}f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one length, each column as wide as its widest cell; the last is left as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, positive(number)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where its nodes should run (cpu)")
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        default=[],
        metavar="NAME=N",
        help="a dimension that the file leaves open, as in batch=16; may be repeated (1; time: the manifest's frames)",
    )
    options = parser.parse_args(arguments)
    for title, lines in sections(options.model, dict(options.size), options.provider):
        print(title, *(f"  {line}" for line in lines), "", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

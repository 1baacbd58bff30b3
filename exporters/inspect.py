"""Look into a model file: `python -m exporters.inspect model.onnx`.

Prints what the manifest says, what the graph is made of, what a run costs it, and on which provider ONNX Runtime runs
each node. Works on any ONNX file. Dimensions that the file leaves open are 1 unless --size says otherwise, but for
`time`, which is the number of frames of the manifest.

folded at load     Nodes that read constants alone. ONNX Runtime computes them once, while it loads the file; they cost
                   a run nothing, and are in no other figure.
parameters         Values of the weights. "once loaded": of those that the nodes read which are left: a train that is
                   merged at load has fewer in the file. Not among them: shapes, axes and other whole numbers
                   (constants), and input weights of a recurrence that are the identity, for gates which come projected.
MACs               Multiply-accumulates of products, convolutions and recurrences; everything else counts nothing.
activations        Bytes that the nodes read and write, weights left out: each reads its inputs and writes its outputs,
                   as if all went through memory. What only views its input, such as Reshape, moves nothing. It is
                   counted node by node, as the file has them: ONNX Runtime may do with less where it makes one of two.
weights read       Bytes of all that the file holds, once loaded, each once.

Shapes that do not follow from those of the inputs are looked up in a run on zeros (True for flags). Where that fails,
and where an op is not ONNX's own or hides its products (Einsum, If), it is named, and the figures are "at least".

The nodes of the last part are those left by ONNX Runtime's basic simplifications: it folds, drops nodes that change
nothing, and makes one of some, as Gemm of MatMul and Add.

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

from exporters.cost import Cost, check_sizes, cost, fed_inputs, folded_macs, open_dimensions
from exporters.folding import Folded, bodies, fold
from exporters.weights import initializers, num_bytes, num_values
from service.engine.provider import CPU, CUDA, cuda_fault
from service.errors import InvalidModel
from service.manifest import METADATA_KEY, Manifest, MLPManifest, ModelFile

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


def check_device(device: Literal["cpu", "cuda"]) -> None:
    """Pass one that can be used here.

    Raises:
        ValueError: says why CUDA cannot.
    """
    if device == "cuda" and (fault := cuda_fault()):
        raise ValueError(f"expected CUDA, which cannot be used here: {fault}")


def assignment(path: Path | bytes, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[str, str, str]]:
    """(provider, op, name) of every node that ONNX Runtime runs, after its basic simplifications, by its own account.

    Raises:
        ValueError: CUDA cannot be used here, or ONNX Runtime does not load the file.
    """
    check_device(device)
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
    """Title and lines of each part of the report, as they become known.

    Raises:
        ValueError: before the first part: no ONNX file, or one without a dimension of `sizes`, or no such device.
    """
    model = read(path)
    check_sizes(model, sizes)
    check_device(device)
    manifest = _manifest(model, path)
    yield "manifest", list(_readable(manifest.model_dump())) if isinstance(manifest, ModelFile) else [manifest]
    folded = fold(model, path.parent)
    yield "graph", _graph(model, folded, path)
    frames = manifest.sampling.num_frames if isinstance(manifest, Manifest) else 0
    chosen = {**dict.fromkeys(open_dimensions(model), 1), **({"time": frames} if frames else {}), **sizes}
    at = ", ".join(f"{name} {size}" for name, size in chosen.items())
    found = cost(folded.model, chosen, path.parent)
    yield f"cost{at and f' at {at}'}", _cost(found, math.prod(chosen.values()) if frames else 1)
    nodes = assignment(path, device)
    counts = Counter(provider for provider, _, _ in nodes)
    yield (
        f"nodes on {', '.join(f'{provider} {count}' for provider, count in counts.items())}",
        [
            f"of {len(_nodes(model))} in the file, {len(folded.nodes)} are folded at load; of the others, ONNX "
            f"Runtime's simplifications leave {len(nodes)}",
            *_columns(nodes),
        ],
    )


def _manifest(model: onnx.ModelProto, path: Path) -> ModelFile | str:
    """What the file says of itself, or why nothing."""
    if METADATA_KEY not in {entry.key for entry in model.metadata_props}:
        return f"none: not a model file of ttvideo, which has the metadata key {METADATA_KEY}"
    kind = MLPManifest if MLP_INPUTS & {value.name for value in fed_inputs(model.graph)} else Manifest
    try:
        return manifest_of(model, path, kind)
    except ValueError as error:
        return str(error)


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


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All of the file, at any depth."""
    return [node for graph in (model.graph, *bodies(model.graph)) for node in graph.node]


def _graph(model: onnx.ModelProto, folded: Folded, path: Path) -> list[str]:
    ops = Counter(f"{node.domain and node.domain + '.'}{node.op_type}" for node in _nodes(model))
    held = initializers(model.graph, path.parent)
    rows = [
        ("file", f"{path}, {path.stat().st_size / 1024:,.0f} KiB, by {model.producer_name or 'an unnamed program'}"),
        *(("opset", f"{opset.version} of {opset.domain or 'ai.onnx'}") for opset in model.opset_import),
        *(("input", _signature(value)) for value in fed_inputs(model.graph)),
        *(("output", _signature(value)) for value in model.graph.output),
        ("ops", f"{ops.total()}: {', '.join(f'{op} {count}' for op, count in ops.most_common())}"),
        ("parameters", _amount(held.parameters)),
        ("constants", _amount(held.constants)),
    ]
    once = initializers(folded.model.graph, path.parent)
    if folded.nodes:
        rows += [
            ("folded at load", f"{len(folded.nodes)} nodes, {folded_macs(folded):,} MACs"),
            ("once loaded", f"parameters: {_amount(once.parameters)}"),
        ]
    if once.identities:
        rows.append(("identity", f"{_amount(once.identities)}: input weights that only hand gates on"))
    return _columns(rows)


def _amount(weights: Sequence[onnx.TensorProto]) -> str:
    return f"{num_values(weights):,} values in {len(weights)} tensors, {_bytes(num_bytes(weights))}"


def _signature(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{dims}]"


def _cost(found: Cost, num_frames: int) -> list[str]:
    """A column for a run, and one for each of its frames where the file reads frames."""
    least = ", at least" if found.left_out else ""
    counts = {f"MACs{least}": found.macs.total()} | {f"  {op}": macs for op, macs in found.macs.most_common()}
    amounts = {f"activations read and written{least}": found.activation_bytes, "weights read": found.weight_bytes}

    def row(name: str, spell: Callable[[float], str], amount: int) -> tuple[str, ...]:
        return (name, spell(amount), spell(amount / num_frames)) if num_frames > 1 else (name, spell(amount))

    rows = [("", "a run", "a frame")[: 3 if num_frames > 1 else 2]]
    rows += [row(name, "{:,.0f}".format, amount) for name, amount in counts.items()]
    rows += [row(name, _bytes, amount) for name, amount in amounts.items()]
    lines = _columns(rows)
    if found.shapes_from_a_run:
        lines.append(f"the shapes of {found.shapes_from_a_run} values were looked up in a run on zeros")
    if found.left_out:
        ops = ", ".join(f"{op} {count}" for op, count in found.left_out.items())
        lines.append(f"left out, since what they cost is not known: {ops}")
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
    name, equals, number = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=N, as in batch=16, got {text!r}")
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

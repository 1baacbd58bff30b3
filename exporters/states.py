"""What a streaming graph carries from one piece of a clip to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from exporters.builder import Builder, tensor
from exporters.recurrence import States
from service.manifest import State
from ttmodels.classifier import ClipClassifier

DTYPES = {"float32": ir.DataType.FLOAT, "int32": ir.DataType.INT32, "uint8": ir.DataType.UINT8}


def of(model: ClipClassifier) -> tuple[State, ...]:
    """All that a model has: of every layer h, and c of an LSTM; the frame before, where differences are read, projected
    unless a backbone looks at them; the sum of the steps' logits, where their mean counts; for both of these, how many
    steps there were.

    Raises:
        ValueError: a bidirectional model.
    """
    config = model.config
    if config.bidirectional:
        raise ValueError("streaming: expected a model that reads forward, got a bidirectional one, "
                         "whose answer needs the end of the clip first")  # fmt: skip
    shape = (config.num_layers, config.hidden_size)
    found = [_state(name, "float32", *shape) for name in ("h", "c")[: model.cells[0].num_states]]
    if config.difference and config.backbone:
        found.append(_state("previous", "uint8", config.sampling.height, config.sampling.width, 3))
    elif config.difference:
        found.append(_state("previous", "float32", model.projection.out_features))
    if config.pooling == "mean":
        found.append(_state("logits_sum", "float32", len(config.labels)))
    if config.difference or config.pooling == "mean":
        found.append(_state("num_steps", "int32"))
    return tuple(found)


def inputs(carried: Sequence[State]) -> dict[str, ir.Value]:
    """The graph's inputs, by name."""
    return {state.input: tensor(state.input, DTYPES[state.dtype], "batch", *state.shape) for state in carried}


def by_cell(graph: Builder, given: Mapping[str, ir.Value], num_layers: int) -> list[States]:
    """h, or h and c, of each layer, [batch, hidden] each."""
    axis = graph.constant([1], "layers_axis")
    parts = []
    for name in ("h", "c"):
        if name in given:
            layers = [given[name]]
            if num_layers > 1:
                layers = list(graph.op_outputs("Split", given[name], num=num_layers, axis=1, num_outputs=num_layers))
            parts.append([graph.op("Squeeze", layer, axis) for layer in layers])
    return list(zip(*parts, strict=True))


def of_cells(graph: Builder, finals: Sequence[States]) -> dict[str, ir.Value]:
    """The other way: h [batch, layers, hidden], or h and c, by name."""
    axis = graph.constant([1], "layers_axis")
    joined = {}
    for name, parts in zip(("h", "c"), zip(*finals, strict=True), strict=False):
        layers = [graph.op("Unsqueeze", part, axis) for part in parts]
        joined[name] = layers[0] if len(layers) == 1 else graph.op("Concat", *layers, axis=1)
    return joined


def _state(name: str, dtype: str, *shape: int) -> State:
    return State.model_validate({"input": name, "output": f"next_{name}", "dtype": dtype, "shape": shape})

"""The graph of a ClipClassifier: uint8 frames and lengths in, logits out. Batch and time are dynamic.

frames (-> backbone) -> projection -> recurrence, layer after layer -> head -> logits. Inside, time is the first axis,
as ONNX's recurrences have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from exporters import backbone, projection, recurrence, states
from exporters.builder import Builder, named, tensor
from exporters.int8_backbone import Step
from exporters.onnx_file import finished
from exporters.projection import Reading
from exporters.quantize import Precision
from exporters.recurrence import States, Steps, Target
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan
from ttmodels.linear import TTLinear


def build(
    model: ClipClassifier,
    plan: Plan,
    *,
    precision: Precision = "fp32",
    target: Target = "cpu",
    streaming: bool = False,
    backbone_steps: Mapping[str, Step] | None = None,
) -> ir.Model:
    """The model's graph with its train contracted by `plan`; weights are copied from the model as they are now.

    A streaming graph takes a clip in pieces: it takes and gives `states.of(model)` too, and its lengths may be 0. Its
    logits are those of all that came so far.

    Args:
        precision: of what reads the pixels: the train, or a backbone; behind one the train is in fp32.
        backbone_steps: by `int8_backbone.calibrate`, for a backbone in int8.

    Raises:
        ValueError: a bidirectional model that is to stream.
    """
    config = model.config
    frames = tensor("frames", ir.DataType.UINT8, "batch", "time", config.sampling.height, config.sampling.width, 3)
    lengths = tensor("lengths", ir.DataType.INT32, "batch")
    graph = Builder()
    carried = states.of(model) if streaming else ()
    given = states.inputs(carried)

    # Of one piece there is little to keep in a cache, and a dense matrix is larger than any.
    by_clip = target == "cpu" and not streaming and len(plan.groups) > 1
    reading = Reading(plan, precision, by_clip)
    steps = Steps(lengths, _present(graph, frames, lengths))
    initial = states.by_cell(graph, given, config.num_layers) if streaming else None
    read, new = frames, dict[str, ir.Value]()
    if model.backbone is not None:
        if config.difference:
            before, new = _one_before(graph, frames, 5, steps, given)
            read = backbone.emit_changes(graph, frames, before)
        read = backbone.emit(graph, model, read, backbone_steps if precision == "int8" else None)
    outputs, finals, carried_gates = _recur(graph, model, reading, read, steps, initial, given, target)
    step_logits, last = _head(graph, model, outputs, finals, lengths)
    over_time = graph.op("Transpose", graph.op("Where", steps.present, step_logits, last), perm=[1, 0, 2])
    new |= carried_gates | (states.of_cells(graph, finals) if streaming else {})
    logits, count = last, lengths
    if "num_steps" in given:
        count = new["num_steps"] = graph.op("Add", lengths, given["num_steps"])
    if config.pooling == "mean":
        logits, new["logits_sum"] = _mean(graph, step_logits, steps, count, given.get("logits_sum"))

    classes = len(config.labels)
    named(logits, "logits", ir.DataType.FLOAT, "batch", classes)
    named(over_time, "logits_over_time", ir.DataType.FLOAT, "batch", "time", classes)
    for state in carried:
        named(new[state.input], state.output, states.DTYPES[state.dtype], "batch", *state.shape)
    return finished(graph, [frames, lengths, *given.values()], [logits, over_time, *(new[s.input] for s in carried)])


def _present(graph: Builder, frames: ir.Value, lengths: ir.Value) -> ir.Value:
    """bool [time, batch, 1]: which steps are there."""
    num_steps = graph.op("Squeeze", graph.op("Shape", frames, start=1, end=2))
    zero, one = graph.constant(np.array(0), "zero"), graph.constant(np.array(1), "one")
    position = graph.op("Cast", graph.op("Range", zero, num_steps, one), to=ir.DataType.INT32)
    inside = graph.op("Less", graph.op("Unsqueeze", position, graph.constant([1], "axis_1")), lengths)
    return graph.op("Unsqueeze", inside, graph.constant([2], "axis_2"))


def _recur(
    graph: Builder,
    model: ClipClassifier,
    reading: Reading,
    read: ir.Value,
    steps: Steps,
    initial: Sequence[States] | None,
    given: Mapping[str, ir.Value],
    target: Target,
) -> tuple[list[ir.Value], list[States], dict[str, ir.Value]]:
    """The last layer's outputs [time, batch, hidden], one a direction, every cell's last states, and what else is to be
    carried."""
    directions, finals = model.rnn.num_directions, []
    outputs: list[ir.Value] = []
    new: dict[str, ir.Value] = {}
    for index, cell in enumerate(model.cells):
        name = f"rnn.cells.{index}"
        layer, direction = divmod(index, directions)
        if layer == 0:
            train, what = cell.projection, f"{name}.projection"
            if model.backbone is None:
                gates = projection.emit_pixels(graph, train, reading, read, model.pixel_scale, model.pixel_shift, what)
                if model.config.difference:
                    gates, new = _changes(graph, train, gates, steps, given)
            else:
                gates = projection.emit(graph, train, reading.plan, read, what)
            value = graph.op("Transpose", gates, perm=[1, 0, 2])
        elif direction == 0:
            value, outputs = _side_by_side(graph, outputs), []
        seen, final = recurrence.emit(
            graph,
            cell,
            value,
            steps,
            initial[index] if initial is not None else None,
            name,
            projected=layer == 0,
            backwards=direction == 1,
            target=target,
        )
        outputs.append(seen)
        finals.append(final)
    return outputs, finals, new


def _changes(
    graph: Builder, layer: TTLinear, gates: ir.Value, steps: Steps, given: Mapping[str, ir.Value]
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """The gates of x_t - x_(t-1), of those of x_t, [batch, time, gates]. The layer is linear, so the difference may
    be taken behind it: of fewer values, and the pixels go in as they are. In pieces also what is to be carried."""
    before, new = _one_before(graph, gates, 3, steps, given)
    value = graph.op("Sub", gates, before)
    if layer.bias is not None:
        value = graph.op("Add", value, graph.constant(layer.bias, "changes_bias"))
    return value, new


def _one_before(
    graph: Builder, values: ir.Value, rank: int, steps: Steps, given: Mapping[str, ir.Value]
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """What is one step before each, [batch, time, ...]; before a clip's first that itself. In pieces also each clip's
    last, [batch, ...], to be carried."""
    axis, start, end = (graph.constant([n], f"before_{name}") for name, n in (("axis", 1), ("first", 0), ("last", -1)))
    before = graph.op("Slice", values, start, graph.constant([1], "before_second"), axis)
    if given:
        zero = graph.constant(np.array(0, np.int32), "no_steps_before")
        inner = graph.constant(list(range(1, rank)), "before_axes")
        some = graph.op("Unsqueeze", graph.op("Greater", given["num_steps"], zero), inner)
        before = graph.op("Where", some, graph.op("Unsqueeze", given["previous"], axis), before)
    shifted = graph.op("Concat", before, values, axis=1)
    others = graph.op("Slice", shifted, start, end, axis)
    if not given:
        return others, {}
    place = graph.op("Unsqueeze", graph.op("Cast", steps.lengths, to=ir.DataType.INT64), axis)
    return others, {"previous": graph.op("GatherND", shifted, place, batch_dims=1)}


def _head(
    graph: Builder, model: ClipClassifier, outputs: Sequence[ir.Value], finals: Sequence[States], lengths: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Logits of each step [time, batch, classes], and those of each clip's last step [batch, classes]."""
    matrix = model.head.weight.detach().T
    offset = graph.constant(model.head.bias, "head.bias")
    if not model.config.bidirectional or model.config.pooling == "last":
        forward = graph.constant(matrix[: model.config.hidden_size], "head.weight")
        if model.config.bidirectional:  # each step gets what the backward direction has made of the whole clip
            backward = graph.constant(matrix[model.config.hidden_size :], "head.weight_backward")
            offset = graph.op("Gemm", finals[-1][0], backward, offset)
        steps = graph.op("Add", graph.op("MatMul", outputs[0], forward), offset)
        return steps, graph.op("Gemm", finals[-len(outputs)][0], forward, offset)
    both = graph.op("MatMul", _side_by_side(graph, outputs), graph.constant(matrix, "head.weight"))
    steps = graph.op("Add", both, offset)
    last = graph.op("Sub", graph.op("Cast", lengths, to=ir.DataType.INT64), graph.constant(np.array(1), "one"))
    place = graph.op("Unsqueeze", last, graph.constant([1], "axis_1"))
    return steps, graph.op("GatherND", graph.op("Transpose", steps, perm=[1, 0, 2]), place, batch_dims=1)


def _mean(
    graph: Builder, step_logits: ir.Value, steps: Steps, count: ir.Value, earlier: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """A clip's mean logits, and their sum with that of `earlier` steps, [batch, classes]; it is of `count` steps."""
    kept = graph.op("Where", steps.present, step_logits, graph.constant(torch.zeros(()), "nothing"))
    total = graph.op("ReduceSum", kept, graph.constant([0], "axis_0"), keepdims=0)
    if earlier is not None:
        total = graph.op("Add", total, earlier)
    at_least_one = graph.op("Max", count, graph.constant(np.array(1, np.int32), "one_step"))
    divisor = graph.op("Cast", at_least_one, to=ir.DataType.FLOAT)
    mean = graph.op("Div", total, graph.op("Unsqueeze", divisor, graph.constant([1], "axis_1")))
    return mean, total


def _side_by_side(graph: Builder, outputs: Sequence[ir.Value]) -> ir.Value:
    return outputs[0] if len(outputs) == 1 else graph.op("Concat", *outputs, axis=2)

"""Every model that a configuration can say, as a graph: ONNX Runtime against torch at sizes that no export saw."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import checker, helper

from exporters import states
from exporters.graph import build
from exporters.onnx_file import OPSET
from exporters.quantize import Precision, rounded
from exporters.recurrence import Target
from exporters.timing import open_session
from exporters.to_onnx import export
from exporters.verify import SIZES, THREADS, TOLERANCES, ParityError, verify
from service.engine.provider import Choice
from service.engine.session import Session
from tests.made import random_classifier, random_clips, tiny_config
from tests.tolerances import EXPORTED
from ttmodels import checkpoint
from ttmodels.activations import ACTIVATIONS
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.contraction import Plan

PLAN = Plan((2, 2))


def exported(model: ClipClassifier, **how: Any) -> onnx.ModelProto:
    proto: onnx.ModelProto = ir.to_proto(build(model, PLAN, **how))
    checker.check_model(proto, full_check=True)
    return proto


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of the graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def check(
    model: ClipClassifier, sizes: Sequence[tuple[int, int]] = ((1, 1), (3, 5), (2, 9)), **how: Any
) -> onnx.ModelProto:
    """The graph's logits are the model's, and its ops those of the standard, without a Loop."""
    proto = exported(model, **how)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", OPSET)]
    used = {name for node in nodes(proto.graph) for name in node.input}
    assert {weight.name for weight in proto.graph.initializer} <= used
    assert {node.domain for node in nodes(proto.graph)} == {""}
    assert "Loop" not in {node.op_type for node in nodes(proto.graph)}
    session = open_session(proto.SerializeToString(), THREADS)
    for batch, time in sizes:
        frames, lengths = random_clips(batch, time), torch.tensor([time - i % time for i in range(batch)])
        feeds = {"frames": frames.numpy(), "lengths": lengths.numpy().astype(np.int32)}
        got = session.run(["logits", "logits_over_time"], feeds)
        with torch.inference_mode():
            want = model(frames, lengths)
        for mine, theirs in zip(got, want, strict=True):
            assert mine.shape == theirs.shape
            assert np.abs(mine - theirs.numpy()).max() < EXPORTED * float(theirs.abs().max())
    return proto


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in nodes(proto.graph)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_cells_directions_and_poolings(cell: str, bidirectional: bool, pooling: str) -> None:
    proto = check(random_classifier(tiny_config(cell=cell, bidirectional=bidirectional, pooling=pooling)))
    assert op_types(proto).count(cell.upper()) == 1 + bidirectional


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_differences_are_taken_of_what_was_projected(bidirectional: bool, precision: Precision) -> None:
    model = random_classifier(tiny_config(difference=True, bidirectional=bidirectional))
    proto = exported(model, precision=precision)
    assert op_types(proto).count("Sub") == 1 + bidirectional
    pixels = [node.op_type for node in nodes(proto.graph) if any("frames" in name for name in node.input)]
    assert "Sub" not in pixels
    like_the_file = rounded(model, PLAN, precision)
    verify(like_the_file, proto.SerializeToString(), tolerance=TOLERANCES[precision], source="made")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_layers(cell: str) -> None:
    """A later layer is the op alone: its train is in the op's input weights."""
    model = random_classifier(tiny_config(cell=cell, num_layers=3, bidirectional=True, recurrent_ranks=(2,)))
    proto = check(model)
    assert op_types(proto).count(cell.upper()) == 6
    weights = {weight.name: list(weight.dims) for weight in proto.graph.initializer}
    gates = model.cells[0].num_gates * 16
    assert weights["rnn.cells.0.weight_ih"] == [1, gates, gates]
    assert weights["rnn.cells.5.weight_ih"] == [1, gates, 32]


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("recurrent_activation", ["sigmoid", "hard_sigmoid"])
def test_the_formulas_of_a_gru(recurrent_activation: str, reset_after: bool) -> None:
    model = random_classifier(tiny_config(reset_after=reset_after, recurrent_activation=recurrent_activation))
    (gru,) = [node for node in check(model).graph.node if node.op_type == "GRU"]
    attributes = {one.name: helper.get_attribute_value(one) for one in gru.attribute}
    assert attributes["linear_before_reset"] == reset_after
    assert (b"HardSigmoid" in attributes.get("activations", [])) == (recurrent_activation == "hard_sigmoid")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_state(activation: str) -> None:
    """As a Scan where the op does not know it."""
    check(random_classifier(tiny_config(cell="lstm", activation=activation)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_gates(activation: str, cell: str) -> None:
    """Over two steps: a gate that may pass 1 lets a state grow without bounds."""
    model = random_classifier(tiny_config(cell=cell, recurrent_activation=activation))
    check(model, sizes=((4, 2),))


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_scan_of_a_gru(reset_after: bool) -> None:
    more = {"num_layers": 2, "bidirectional": True, "recurrent_ranks": (2, 3, 2)}
    proto = check(random_classifier(tiny_config(activation="gelu", reset_after=reset_after, **more)))
    assert "GRU" not in op_types(proto)


@pytest.mark.parametrize(
    ("options", "native"),
    [
        ({}, True),
        ({"reset_after": False}, False),
        ({"recurrent_activation": "hard_sigmoid"}, False),
        ({"cell": "rnn", "activation": "relu"}, False),
        ({"cell": "lstm", "num_layers": 2}, True),
    ],
)
def test_what_cuda_does_not_take_is_no_native_op_there(options: dict[str, Any], native: bool) -> None:
    model = random_classifier(tiny_config(**options))
    assert bool({"RNN", "GRU", "LSTM"} & set(op_types(check(model, target="cuda")))) == native
    assert {"RNN", "GRU", "LSTM"} & set(op_types(check(model, target="cpu")))


@pytest.mark.parametrize("streaming", [False, True])
def test_whoever_runs_a_file_may_fix_its_sizes(streaming: bool) -> None:
    """ONNX Runtime then evaluates at load what depends on them, and is strict about it."""
    model = random_classifier(tiny_config())
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("time", 6)
    options.add_free_dimension_override_by_name("batch", 2)
    data = exported(model, streaming=streaming).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    frames = random_clips(2, 6)
    feeds = {"frames": frames.numpy(), "lengths": np.array([6, 3], np.int32)}
    for state in states.of(model) if streaming else ():
        feeds[state.input] = np.zeros((2, *state.shape), state.dtype)
    with torch.inference_mode():
        want = model(frames, torch.tensor([6, 3]))[0]
    assert np.abs(session.run(["logits"], feeds)[0] - want.numpy()).max() < EXPORTED * float(want.abs().max())


def test_a_model_that_reads_backwards_does_not_stream() -> None:
    with pytest.raises(ValueError, match="streaming: expected a model that reads forward, got a bidirectional one"):
        build(random_classifier(tiny_config(bidirectional=True)), PLAN, streaming=True)


def test_the_service_runs_what_reads_both_ways(tmp_path: Path) -> None:
    """And its manifest says what the network is."""
    form = {"cell": "lstm", "num_layers": 2, "bidirectional": True, "activation": "softsign", "recurrent_ranks": (2,)}
    model = random_classifier(tiny_config(**form))
    checkpoint.save(tmp_path / "a.safetensors", model, TrainConfig(), Progress())
    export(checkpoint.load(tmp_path / "a.safetensors"), tmp_path / "made.onnx", name="made", measure=False)
    session = Session(tmp_path / "made.onnx", Choice("cpu"))
    architecture = session.manifest.architecture.model_dump()
    assert {name: architecture[name] for name in form} == form
    frames = random_clips(2, 6)
    with torch.inference_mode():
        want = model(frames, torch.tensor([6, 4])).logits
    got, *_ = session.run(frames.numpy(), np.array([6, 4], np.int32))
    assert np.abs(got - want.numpy()).max() < EXPORTED * float(want.abs().max())


# ---- verify


@pytest.mark.parametrize("streaming", [False, True])
def test_the_proof_is_at_twenty_sizes(streaming: bool) -> None:
    model = random_classifier(tiny_config(cell="lstm", num_layers=2))
    carried = states.of(model) if streaming else ()
    data = exported(model, streaming=streaming).SerializeToString()
    parity = verify(model, data, source="made", carried=carried)
    assert len(set(parity.sizes)) == len(SIZES) == 20
    assert 0 < parity.max_abs_error < EXPORTED * 10


@pytest.mark.parametrize("streaming", [False, True])
def test_the_proof_finds_a_weight_that_is_off(streaming: bool) -> None:
    model = random_classifier(tiny_config())
    proto = exported(model, streaming=streaming)
    (weight,) = [one for one in proto.graph.initializer if one.name == "rnn.cells.0.weight_hh"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ParityError, match="differs from torch by"):
        verify(model, proto.SerializeToString(), source="made", carried=states.of(model) if streaming else ())


# ---- the whole grid

FORMS = [
    {
        "cell": cell, "num_layers": layers, "bidirectional": bidirectional, "pooling": pooling,
        "activation": activation, "recurrent_ranks": ranks, "reset_after": reset_after,
    }
    for cell, layers, bidirectional, pooling, activation, ranks, reset_after in itertools.product(
        ("rnn", "gru", "lstm"), (1, 2), (False, True), ("last", "mean"), ("tanh", "softsign", "gelu"), ((), (2,)),
        (True, False),
    )
    if reset_after or cell == "gru"
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_whole_grid(cell: str, target: Target) -> None:
    for form in FORMS:
        if form["cell"] == cell:
            check(random_classifier(tiny_config(**form)), target=target)

"""TT layers inside networks of somebody's own, through plain torch.onnx.export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tests.tolerances import DOUBLE_RECURRENCE, FROM_TORCH, HALF, RECURRENCE
from ttmodels import TTGRU, TTLSTM, TTRNN, TTGRUCell, TTLinear, TTLSTMCell, TTRNNCell, compress
from ttmodels.contraction import Plan

pytestmark = [
    pytest.mark.slow,
    # torch's exporter copies its own deprecated tree specifications
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # and says so when a name is given to two axes that are one, as they should be
    pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning"),
]

SIZES = [(1, 1), (1, 2), (2, 1), (3, 7), (5, 4), (8, 16), (1, 33), (17, 3), (4, 64)]
"""(batch, time), none of them the one that was traced."""
TRACED = (3, 5)

Inputs = dict[str, Tensor]
Make = Callable[[int, int], Inputs]


def export(network: nn.Module, make: Make, dims: dict[str, dict[int, str]]) -> onnx.ModelProto:
    """By the call that anybody would write; every op is a standard one, and none is a Loop."""
    program = torch.onnx.export(network.eval(), kwargs=make(*TRACED), dynamic_shapes=dims, dynamo=True, verbose=False)
    assert program is not None
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.domain for entry in proto.opset_import] == [""]
    assert proto.opset_import[0].version >= 18
    assert not proto.functions
    used = ops(proto)
    assert not used & {"Loop", "If"}
    assert all(onnx.defs.has(op, max_inclusive_version=proto.opset_import[0].version) for op in used)
    assert not unused(proto)
    return proto


def ops(proto: onnx.ModelProto) -> set[str]:
    """Of the graph and of what its nodes hold."""

    def of(graph: onnx.GraphProto) -> set[str]:
        inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        return {node.op_type for node in graph.node}.union(*map(of, inner))

    return of(proto.graph)


def unused(proto: onnx.ModelProto) -> set[str]:
    """Weights that ONNX Runtime would warn of."""
    graphs = [proto.graph]
    for graph in graphs:
        graphs += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    used = {name for graph in graphs for node in graph.node for name in node.input}
    used |= {output.name for graph in graphs for output in graph.output}
    return {weight.name for graph in graphs for weight in graph.initializer} - used


def run(proto: onnx.ModelProto, inputs: Inputs) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))


@torch.no_grad()
def assert_same(
    network: nn.Module,
    proto: onnx.ModelProto,
    make: Make,
    tolerance: float = RECURRENCE,
    sizes: list[tuple[int, int]] = SIZES,
) -> None:
    """ONNX Runtime gives what torch does, relative to values above 1."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, time in sizes:
        inputs = make(batch, time)
        want = _pytree.tree_leaves(network(**inputs))
        got = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for a, b in zip(got, want, strict=True):
            assert a.shape == tuple(b.shape)
            assert a.dtype == b.numpy().dtype
            assert np.abs(a - b.numpy()).max() <= tolerance * max(1, b.abs().max()), (batch, time)


@torch.no_grad()
def with_biases(network: nn.Module) -> nn.Module:
    """Biases that are not 0, so that one in the wrong place is seen."""
    for name, parameter in network.named_parameters():
        if "bias" in name:
            parameter.normal_()
    return network


def frames(batch: int, time: int, size: int = 24) -> Tensor:
    return torch.randn(batch, time, size)


def some_lengths(batch: int, time: int, least: int = 1) -> Tensor:
    """The longest is not always there."""
    return torch.randint(least, time + 1, (batch,))


def sequences(batch: int, time: int) -> Inputs:
    return {"x": frames(batch, time), "lengths": some_lengths(batch, time, least=0)}


def gaps(batch: int, time: int) -> Inputs:
    return {"x": frames(batch, time), "mask": torch.rand(batch, time) < 0.6}


BATCH_AND_TIME = {0: "batch", 1: "time"}
SEQUENCES = {"x": BATCH_AND_TIME, "lengths": {0: "batch"}}
GAPS = {"x": BATCH_AND_TIME, "mask": BATCH_AND_TIME}


# --- networks of somebody's own


class Mlp(nn.Module):
    """Layers on the last axis of [batch, time, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TTLinear((4, 3, 2), (4, 4, 4), 3, activation="gelu")
        self.norm = nn.LayerNorm(64)
        self.second = TTLinear((8, 8), (2, 5), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


class PerFrameNet(nn.Module):
    """A convolutional net on each frame of [batch, time, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128, 96), nn.ReLU(), nn.Dropout(), nn.Linear(96, 32))

    def forward(self, frames: Tensor) -> Tensor:
        return self.classifier(self.features(frames.flatten(0, 1))).unflatten(0, frames.shape[:2])


class LastStep(nn.Module):
    """A TT-GRU and a head on each sequence's last step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = TTGRU((4, 6), (4, 4), 3, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(x, lengths=lengths)
        return self.head(state[-1]), outputs


class Attention(nn.Module):
    """Two layers of a bidirectional TT-LSTM, weighted over the steps that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = TTLSTM((4, 6), (4, 4), 3, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.score, self.head = nn.Linear(32, 1), TTLinear((4, 8), (2, 3), 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outputs, _ = self.lstm(x, lengths=lengths)
        outside = torch.arange(x.shape[1])[None, :] >= lengths[:, None]
        weights = self.score(outputs).squeeze(-1).masked_fill(outside, -torch.inf).softmax(1)
        return self.head((weights[..., None] * outputs).sum(1))


class Streaming(nn.Module):
    """One step of two cells, their states in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.below = TTLSTMCell((4, 6), (4, 4), 3)
        self.middle = TTGRUCell((4, 4), (4, 2), 2, recurrent_ranks=2)
        self.above = TTRNNCell((4, 2), (2, 2), 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, g: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        h, c = self.below(x, (h, c))
        g = self.middle(h, g)
        return h, c, g, self.above(g, r)


class Masked(nn.Module):
    """A TT-RNN over steps of which any may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = TTRNN((4, 6), (4, 4), 3, activation="relu", batch_first=True, recurrent_initialiser="identity")

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x, mask=mask)


class Words(nn.Module):
    """Torch's own layers; the state goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.gru = nn.GRU(64, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 50)

    def forward(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(self.embedding(words), state)
        return self.head(outputs), state


def test_an_mlp() -> None:
    network = with_biases(Mlp())
    proto = export(network, lambda b, t: {"x": frames(b, t)}, {"x": BATCH_AND_TIME})
    assert_same(network, proto, lambda b, t: {"x": frames(b, t)})


def test_a_convolutional_net_whose_last_layers_were_compressed() -> None:
    def images(batch: int, time: int) -> Inputs:
        return {"frames": torch.randn(batch, time, 3, 16, 16)}

    network, report = compress(with_biases(PerFrameNet()).eval(), tt_ranks=6)
    assert {layer.name for layer in report.layers} == {"classifier.1", "classifier.4"}
    proto = export(network, images, {"frames": BATCH_AND_TIME})
    assert_same(network, proto, images)
    assert {"classifier.1.bias", "classifier.4.bias"} <= {tensor.name for tensor in proto.graph.initializer}


def test_a_gru_with_lengths_and_a_head() -> None:
    network = with_biases(LastStep())
    proto = export(network, sequences, SEQUENCES)
    assert "GRU" in ops(proto)
    assert_same(network, proto, sequences)


def test_a_bidirectional_lstm_under_attention() -> None:
    def some(batch: int, time: int) -> Inputs:
        return {"x": frames(batch, time), "lengths": some_lengths(batch, time)}

    network = with_biases(Attention())
    proto = export(network, some, SEQUENCES)
    assert sum(node.op_type == "LSTM" for node in proto.graph.node) == 4
    assert_same(network, proto, some)


def test_a_step_at_a_time() -> None:
    """The exported step, called for each frame, gives what the cells give over the whole clip."""

    def step(batch: int, time: int) -> Inputs:
        sizes = {"x": 24, "h": 16, "c": 16, "g": 8, "r": 4}
        return {name: torch.randn(batch, size) for name, size in sizes.items()}

    network = with_biases(Streaming())
    proto = export(network, step, {name: {0: "batch"} for name in step(1, 1)})
    assert_same(network, proto, step, sizes=[(batch, 1) for batch in (1, 2, 4, 9)])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = step(2, 1)
    want = dict(fed)
    for _ in range(10):
        x = torch.randn(2, 24)
        with torch.no_grad():
            want = dict(zip("hcgr", network(**want | {"x": x}), strict=True))
        got = session.run(None, {name: np.asarray(value) for name, value in (fed | {"x": x}).items()})
        fed = dict(zip("hcgr", map(torch.from_numpy, got), strict=True))
    for name, value in want.items():
        assert (fed[name] - value).abs().max() < RECURRENCE


def test_a_mask_with_gaps() -> None:
    network = with_biases(Masked())
    proto = export(network, gaps, GAPS)
    assert "RNN" in ops(proto)
    assert_same(network, proto, gaps)


def test_a_compressed_gru_that_goes_on_where_it_ended() -> None:
    def words(batch: int, time: int) -> Inputs:
        return {"words": torch.randint(0, 50, (batch, time)), "state": torch.randn(2, batch, 64)}

    network, report = compress(with_biases(Words()), tt_ranks=4)
    assert "gru" in {layer.name for layer in report.layers}
    proto = export(network, words, {"words": BATCH_AND_TIME, "state": {1: "batch"}})
    assert_same(network, proto, words)
    whole = words(2, 12)
    logits, _ = run(proto, whole)
    parts, state = [], whole["state"]
    for piece in whole["words"].split([5, 1, 6], dim=1):
        part, last = run(proto, {"words": piece, "state": state})
        parts.append(part)
        state = torch.from_numpy(last)
    assert np.abs(np.concatenate(parts, 1) - logits).max() < RECURRENCE


# --- the layers


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> object:
        return self.network(x, lengths=lengths, mask=mask)


class Halved(TTRNNCell):
    """A formula of somebody's own."""

    def step(self, projected: Tensor, state: tuple[Tensor, ...], mask: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(0.5 * (now + old) for now, old in zip(super().step(projected, state, mask), state, strict=True))


class HalvedRNN(TTRNN):
    cell_class = Halved


def small(block: Tensor) -> None:
    """So that states without a bound do not grow."""
    nn.init.normal_(block, std=0.1)


NATIVE = [
    (TTRNN, {"bidirectional": True, "bias": False}),
    (TTGRU, {"recurrent_activation": "hard_sigmoid"}),
    (TTGRU, {"reset_after": False, "activation": "elu", "recurrent_activation": "hard_sigmoid"}),
    (TTGRU, {"go_backwards": True, "num_layers": 2}),
    (TTGRU, {"recurrent_ranks": 2, "return_sequences": False, "bidirectional": True}),
    (TTLSTM, {"activation": "linear", "recurrent_activation": "hard_sigmoid", "recurrent_initialiser": small}),
    (TTLSTM, {"activation": "softsign", "go_backwards": True, "return_sequences": False}),
    (TTLSTM, {"recurrent_dropout": 0.5, "bidirectional": True}),
]
SCANNED = [
    (TTRNN, {"activation": "selu"}),
    (TTGRU, {"activation": "gelu", "bidirectional": True, "recurrent_ranks": 2}),
    (TTGRU, {"activation": "softplus", "reset_after": False, "bias": False, "recurrent_initialiser": small}),
    (TTLSTM, {"activation": torch.sin, "num_layers": 2, "go_backwards": True}),
    (HalvedRNN, {"bidirectional": True}),
]


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else "-".join(value) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("absent", ["lengths", "mask"])
@pytest.mark.parametrize(("layer", "options"), [*NATIVE, *SCANNED], ids=_name)
def test_every_option(layer: type[TTRNN], options: dict[str, object], absent: str) -> None:
    make, dims = (sequences, SEQUENCES) if absent == "lengths" else (gaps, GAPS)
    network = Wrapped(with_biases(layer((4, 6), (4, 4), 3, batch_first=True, **options)))
    proto = export(network, make, dims)
    assert ("Scan" in ops(proto)) == ((layer, options) in SCANNED)
    assert_same(network, proto, make)


class WithState(nn.Module):
    """A TT-LSTM whose state goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = TTLSTM((4, 6), (4, 4), 3, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.lstm(x, (h, c), lengths=lengths)


def test_an_empty_sequence_hands_its_state_on() -> None:
    def make(batch: int, time: int) -> Inputs:
        state = {name: torch.randn(2, batch, 16) for name in "hc"}
        return {"x": frames(batch, time), **state, "lengths": torch.arange(batch) % (time + 1)}

    network = with_biases(WithState())
    states = {1: "batch"}
    dims = {"x": BATCH_AND_TIME, "h": states, "c": states, "lengths": {0: "batch"}}
    assert_same(network, export(network, make, dims), make)


@pytest.mark.parametrize("layer", [TTRNN, TTGRU, TTLSTM])
def test_time_first_and_no_lengths(layer: type[TTRNN]) -> None:
    def make(batch: int, time: int) -> Inputs:
        return {"x": frames(time, batch)}

    network = Wrapped(with_biases(layer((4, 6), (4, 4), 3)))
    assert_same(network, export(network, make, {"x": {0: "time", 1: "batch"}}), make)


def test_one_sequence_without_a_batch() -> None:
    def make(batch: int, time: int) -> Inputs:
        return {"x": torch.randn(time, 24)}

    network = Wrapped(with_biases(TTLSTM((4, 6), (4, 4), 3)))
    assert_same(network, export(network, make, {"x": {0: "time"}}), make)


def test_torchs_own_gru_through_a_train() -> None:
    """Nothing of ours on the side that is compared with."""

    def make(batch: int, time: int) -> Inputs:
        return {"x": frames(batch, time)}

    dense = nn.GRU(24, 16, num_layers=2, bidirectional=True, batch_first=True)
    proto = export(
        TTGRU.from_gru(dense, (4, 6), (4, 4)), lambda b, t: {"input": frames(b, t)}, {"input": BATCH_AND_TIME}
    )
    for batch, time in SIZES:
        x = frames(batch, time)
        with torch.no_grad():
            want = dense(x)
        for got, expected in zip(run(proto, {"input": x}), want, strict=True):
            assert np.abs(got - expected.numpy()).max() < FROM_TORCH


@pytest.mark.parametrize(
    ("dtype", "tolerance", "op"),
    [(torch.float64, DOUBLE_RECURRENCE, "Scan"), (torch.float16, HALF["float16"], "LSTM")],
    ids=str,
)
def test_other_precisions(dtype: torch.dtype, tolerance: float, op: str) -> None:
    """ONNX Runtime's ops take neither on a CPU: float64 loses nothing in a Scan, float16 gains in a float32 op."""

    def make(batch: int, time: int) -> Inputs:
        return sequences(batch, time) | {"x": frames(batch, time).to(dtype)}

    network = Wrapped(with_biases(TTLSTM((4, 6), (4, 4), 3, batch_first=True)).to(dtype))
    proto = export(network, make, SEQUENCES)
    assert op in ops(proto)
    assert_same(network, proto, make, tolerance)


def test_a_stateful_network_starts_anew_in_the_graph_and_goes_on_in_torch() -> None:
    network = TTGRU((4, 6), (4, 4), 3, batch_first=True, stateful=True)
    with torch.no_grad():
        _, carried = network(frames(3, 4))
    proto = export(Wrapped(network), sequences, SEQUENCES)
    assert torch.equal(network._carried[0], carried)
    network.reset_state()
    inputs = sequences(2, 6)
    with torch.no_grad():
        want, _ = Wrapped(network)(**inputs)
    assert np.abs(run(proto, inputs)[0] - want.numpy()).max() < RECURRENCE


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of itself
def test_the_older_exporter_is_refused(tmp_path: Path) -> None:
    """It would unroll time, and be wrong at another length without a word."""
    network = Wrapped(TTGRU((4, 6), (4, 4), 3)).eval()
    with pytest.raises(ValueError, match="expected dynamo=True"):
        torch.onnx.export(network, (frames(2, 3),), tmp_path / "a.onnx", dynamo=False)


def test_trains_are_merged_once_and_not_at_every_call(tmp_path: Path) -> None:
    """In the graph as ONNX Runtime runs it, every node waits for an input. These trains are above what torch's own
    optimiser folds into the file."""
    network = nn.Module()
    network.rnn = TTGRU((8, 20, 20, 18), (4, 4, 8, 4), 4, batch_first=True, recurrent_ranks=4)
    network.forward = lambda x, lengths: network.rnn(x, lengths=lengths)  # type: ignore[method-assign]
    proto = export(network, lambda b, t: sequences(b, t) | {"x": frames(b, t, 57600)}, SEQUENCES)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    waiting = {value.name for value in graph.input}
    for node in graph.node:
        assert waiting & set(node.input), node.name
        waiting |= set(node.output)
    used = {node.op_type for node in graph.node if node.op_type in {"MatMul", "GRU", "Einsum", "Gemm"}}
    assert used == {"MatMul", "GRU"}


def test_a_changed_plan_is_that_of_the_graph(tmp_path: Path) -> None:
    """What ONNX Runtime keeps of a layer once it has loaded the file: the dense matrix, or two small factors."""
    layer = TTLinear((8, 16, 16), (8, 8, 8), 8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    kept = {}
    for groups in ((3,), (1, 2)):
        if groups != (3,):  # which is its own choice
            layer.plan = Plan(groups)
        proto = export(layer, lambda b, t: {"x": frames(b, t, 2048)}, {"x": BATCH_AND_TIME})
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        weights = onnx.load(tmp_path / "optimised.onnx").graph.initializer
        kept[groups] = sum(onnx.numpy_helper.to_array(weight).size for weight in weights)
    assert kept[3,] == pytest.approx(2048 * 512, rel=0.01)
    assert kept[1, 2] == pytest.approx(8 * 8 * 8 + 256 * 64 * 8, rel=0.01)

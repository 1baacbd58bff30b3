"""TTRNN, TTGRU and TTLSTM against torch's own at full rank, and each of their options against what it should change."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.tolerances import CONTRACTION, DOUBLE_RECURRENCE, FROM_TORCH, GRADIENT, RECURRENCE
from ttmodels.cells import TTCell
from ttmodels.constraints import Penalty
from ttmodels.linear import TTLinear
from ttmodels.recurrent import NETWORKS, TTGRU, TTLSTM, TTRNN, TTRecurrent, recur
from ttmodels.tensor_train import tt_svd

ORACLES: dict[type[TTRecurrent], type[nn.RNNBase]] = {TTRNN: nn.RNN, TTGRU: nn.GRU, TTLSTM: nn.LSTM}
KINDS = pytest.mark.parametrize("kind", list(ORACLES), ids=lambda kind: kind.__name__)
N, M = (3, 2, 2), (2, 3, 1)
INPUT, HIDDEN = 12, 6
State = torch.Tensor | tuple[torch.Tensor, ...]


def suffix_of(index: int, directions: int) -> str:
    return f"_l{index // directions}{'_reverse' if index % directions else ''}"


@torch.no_grad()
def twins(
    kind: type[TTRecurrent], *, nonlinearity: str = "tanh", bidirectional: bool = False, **options: Any
) -> tuple[TTRecurrent, nn.RNNBase]:
    """A network of full rank with the weights of torch's own, in float64; set by hand, not by from_*."""
    extra = {"nonlinearity": nonlinearity} if kind is TTRNN else {}
    oracle = ORACLES[kind](INPUT, HIDDEN, dtype=torch.double, bidirectional=bidirectional, **extra, **options)
    network = kind(N, M, activation=nonlinearity, dtype=torch.double, bidirectional=bidirectional, **options)
    for index, cell in enumerate(network.cells):
        suffix = suffix_of(index, 1 + bidirectional)
        shape = cell.projection.shape
        weight = getattr(oracle, f"weight_ih{suffix}").T
        cell.projection.set_cores(tt_svd(weight, shape.input_modes, shape.output_modes))
        cell.hidden.weight.copy_(getattr(oracle, f"weight_hh{suffix}"))
        if oracle.bias:
            cell.projection.bias.copy_(getattr(oracle, f"bias_ih{suffix}"))
            cell.hidden.bias.copy_(getattr(oracle, f"bias_hh{suffix}"))
    return network, oracle


def parts(state: State) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else tuple(state)


def alike(mine: Any, theirs: Any, tolerance: float = DOUBLE_RECURRENCE) -> None:
    """The same shapes and values: of tensors, packed sequences, and tuples of them."""
    if isinstance(theirs, PackedSequence):
        assert isinstance(mine, PackedSequence)
        assert torch.equal(mine.batch_sizes, theirs.batch_sizes)
        for one, other in (
            (mine.sorted_indices, theirs.sorted_indices),
            (mine.unsorted_indices, theirs.unsorted_indices),
        ):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        alike(mine.data, theirs.data, tolerance)
    elif isinstance(theirs, tuple):
        assert isinstance(mine, tuple)
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            alike(one, other, tolerance)
    else:
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine, theirs, atol=tolerance)


def state_for(kind: type[TTRecurrent], *shape: int, dtype: torch.dtype = torch.double) -> State:
    made = tuple(torch.randn(*shape, dtype=dtype) for _ in range(kind.cell_class.num_states))
    return made if len(made) > 1 else made[0]


# ---- torch

CASES = [(TTRNN, "tanh"), (TTRNN, "relu"), (TTGRU, "tanh"), (TTLSTM, "tanh")]


@pytest.mark.parametrize(("kind", "nonlinearity"), CASES, ids=["rnn-tanh", "rnn-relu", "gru", "lstm"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_full_rank_equals_torch(
    kind: type[TTRecurrent], nonlinearity: str, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool
) -> None:
    """Whatever torch takes: padded, packed in order or not, unbatched, one step, one sequence; with hx and without."""
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    network, oracle = twins(kind, nonlinearity=nonlinearity, **options)
    x = torch.randn(4, 7, INPUT, dtype=torch.double)  # [batch, time, input]
    sorted_lengths, lengths = torch.tensor([7, 5, 5, 1]), torch.tensor([2, 7, 1, 4])

    def laid(x: torch.Tensor) -> torch.Tensor:
        return x if batch_first else x.transpose(0, 1)

    inputs: list[tuple[torch.Tensor | PackedSequence, tuple[int, ...]]] = [
        (laid(x), (4,)),
        (laid(x[:, :1]), (4,)),
        (laid(x[:1]), (1,)),
        (x[0], ()),
        (pack_padded_sequence(laid(x), sorted_lengths, batch_first=batch_first), (4,)),
        (pack_padded_sequence(laid(x), lengths, batch_first=batch_first, enforce_sorted=False), (4,)),
    ]
    for given, batch in inputs:
        hx = state_for(kind, num_layers * (1 + bidirectional), *batch, HIDDEN)
        alike(network(given), oracle(given))
        alike(network(given, hx), oracle(given, hx))


@KINDS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_equal_torchs(kind: type[TTRecurrent], bidirectional: bool) -> None:
    """Of the input, the first state and what both hold as it is; of the cores through the dense matrix."""
    network, oracle = twins(kind, num_layers=2, bidirectional=bidirectional)
    directions = 1 + bidirectional
    x = torch.randn(5, 3, INPUT, dtype=torch.double)
    hx = parts(state_for(kind, 2 * directions, 3, HIDDEN))
    gradients = []
    for model in (network, oracle):
        mine = [value.clone().requires_grad_() for value in (x, *hx)]
        output, final = model(mine[0], tuple(mine[1:]) if len(hx) > 1 else mine[1])
        loss = output.square().sum() + sum(part.sin().sum() for part in parts(final))
        if model is network:
            held = [p for cell in network.cells for p in (cell.hidden.weight, cell.hidden.bias, cell.projection.bias)]
        else:
            suffixes = [suffix_of(k, directions) for k in range(2 * directions)]
            names = [f"{name}{s}" for s in suffixes for name in ("weight_hh", "bias_hh", "bias_ih")]
            held = [getattr(oracle, name) for name in names]
        gradients.append(torch.autograd.grad(loss, [*mine, *held]))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=GRADIENT)


@pytest.mark.parametrize("batch_first", [False, True])
@KINDS
def test_lengths_equal_torchs_packed_sequence(kind: type[TTRecurrent], batch_first: bool) -> None:
    network, oracle = twins(kind, bidirectional=True, num_layers=2, batch_first=batch_first)
    lengths = torch.tensor([9, 1, 4, 7])
    x = torch.randn(*((4, 9) if batch_first else (9, 4)), INPUT, dtype=torch.double)
    packed, want_state = oracle(pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False))
    want, _ = pad_packed_sequence(packed, batch_first=batch_first)
    for given in (lengths, lengths.tolist(), lengths.int()):
        alike(network(x, lengths=given), (want, want_state))


@KINDS
def test_gradcheck_with_lengths(kind: type[TTRecurrent]) -> None:
    network = kind((2, 2), (2, 1), 2, num_layers=2, bidirectional=True, dtype=torch.double)
    names, values = zip(*network.named_parameters(), strict=True)
    x = torch.randn(3, 2, 4, dtype=torch.double, requires_grad=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = dict(zip(names, values, strict=True))
        output, final = torch.func.functional_call(network, state, (x,), {"lengths": torch.tensor([3, 1])})
        return (output, *parts(final))

    assert torch.autograd.gradcheck(call, (x, *values))


# ---- masks


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True, "num_layers": 2}, {"go_backwards": True}, {"go_backwards": True, "num_layers": 2}],
    ids=str,
)
@KINDS
def test_a_masked_sequence_is_the_one_without_its_absent_steps(kind: type[TTRecurrent], options: dict) -> None:
    """Also with holes in the middle, and where nothing is there at all: then the state is the first one."""
    network = kind(N, M, 3, batch_first=True, dtype=torch.double, **options)
    x = torch.randn(5, 8, INPUT, dtype=torch.double)
    mask = torch.rand(5, 8) < 0.6
    mask[0], mask[1], mask[2, :4] = True, False, False
    hx = state_for(kind, len(network.cells), 5, HIDDEN)
    output, final = network(x, hx, mask=mask)
    assert output.shape == (5, 8, HIDDEN * network.num_directions)
    for i in range(5):
        present = mask[i].flip(0) if network.go_backwards else mask[i]  # outputs come in the order of reading
        assert not bool(output[i, ~present].any())
        first = tuple(part[:, i] for part in parts(hx))
        if not bool(mask[i].any()):
            alike(tuple(part[:, i] for part in parts(final)), first)
            continue
        alone, alone_final = network(x[i, mask[i]], first if len(first) > 1 else first[0])
        alike(output[i, present], alone)
        alike(tuple(part[:, i] for part in parts(final)), parts(alone_final))


@KINDS
def test_what_is_absent_reaches_nothing(kind: type[TTRecurrent]) -> None:
    """Not even NaN, in neither direction; and it has no gradient."""
    network = kind(N, M, 3, batch_first=True, num_layers=2, bidirectional=True)
    x = torch.randn(2, 6, INPUT)
    lengths = torch.tensor([6, 2])
    want = network(x, lengths=lengths)
    spoilt = x.clone()
    spoilt[1, 2:] = 1e6
    spoilt.requires_grad_()
    got = network(spoilt, lengths=lengths)
    alike(got, want, RECURRENCE)
    got[0].sum().backward()
    assert not bool(spoilt.grad[1, 2:].any())
    assert bool(spoilt.grad[1, :2].any())


@KINDS
def test_lengths_are_a_mask(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3)
    x, lengths = torch.randn(6, 3, INPUT), torch.tensor([6, 0, 4])
    alike(network(x, lengths=lengths), network(x, mask=torch.arange(6) < lengths[:, None]))


@KINDS
def test_a_sequence_of_no_steps_keeps_its_first_state(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, num_layers=2, dtype=torch.double)
    x, hx = torch.randn(4, 2, INPUT, dtype=torch.double), state_for(kind, 2, 2, HIDDEN)
    output, final = network(x, hx, lengths=[4, 0])
    assert not bool(output[:, 1].any())
    for got, first in zip(parts(final), parts(hx), strict=True):
        assert torch.equal(got[:, 1], first[:, 1])


@KINDS
@pytest.mark.parametrize(("time", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_no_steps_or_no_sequences(kind: type[TTRecurrent], time: int, batch: int) -> None:
    network = kind(N, M, 3, num_layers=2, bidirectional=True)
    output, final = network(torch.zeros(time, batch, INPUT))
    assert output.shape == (time, batch, 2 * HIDDEN)
    assert all(part.shape == (4, batch, HIDDEN) for part in parts(final))


# ---- options

BASE: dict[str, Any] = {"tt_ranks": 3}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "num_layers": ({}, {"num_layers": 2}),
    "bias": ({"bias_initialiser": nn.init.ones_}, {"bias": False, "bias_initialiser": nn.init.ones_}),
    "batch_first": ({}, {"batch_first": True}),
    "dropout": ({"num_layers": 2}, {"num_layers": 2, "dropout": 0.5}),
    "bidirectional": ({}, {"bidirectional": True}),
    "return_sequences": ({}, {"return_sequences": False}),
    "go_backwards": ({}, {"go_backwards": True}),
    "stateful": ({}, {"stateful": True}),
    "activation": ({}, {"activation": "softsign"}),
    "recurrent_activation": ({}, {"recurrent_activation": "hard_sigmoid"}),
    "recurrent_initialiser": ({}, {"recurrent_initialiser": "glorot_normal"}),
    "recurrent_ranks": ({}, {"recurrent_ranks": 2}),
    "recurrent_dropout": ({}, {"recurrent_dropout": 0.5}),
    "kernel_initialiser": ({}, {"kernel_initialiser": "he_uniform"}),
    "reset_after": ({}, {"reset_after": False}),
    "unit_forget_bias": ({}, {"unit_forget_bias": False}),
}
ONLY = {"reset_after": [TTGRU], "unit_forget_bias": [TTLSTM], "recurrent_activation": [TTGRU, TTLSTM]}


@pytest.mark.parametrize(
    ("kind", "option"), [(k, o) for k, o in itertools.product(ORACLES, OPTIONS) if k in ONLY.get(o, [k])], ids=str
)
def test_every_option_changes_the_output(kind: type[TTRecurrent], option: str) -> None:
    outputs = []
    for options in OPTIONS[option]:
        torch.manual_seed(1)
        network = kind(N, M, **BASE, **options)
        x = torch.randn(4, 4, INPUT, generator=torch.Generator().manual_seed(2))
        network(x)
        torch.manual_seed(3)
        outputs.append(network(x)[0])
    assert outputs[0].shape != outputs[1].shape or not torch.allclose(*outputs)


def test_every_option_is_tested() -> None:
    for of in (TTRecurrent, TTCell):
        keywords = [p.name for p in inspect.signature(of).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert set(keywords) <= set(OPTIONS)


@KINDS
@pytest.mark.parametrize("recurrent_ranks", [None, 2])
def test_layers_have_torchs_sizes(kind: type[TTRecurrent], recurrent_ranks: int | None) -> None:
    network = kind(N, M, 3, num_layers=3, bidirectional=True, recurrent_ranks=recurrent_ranks)
    assert (network.input_size, network.hidden_size, network.num_layers) == (INPUT, HIDDEN, 3)
    assert len(network.cells) == 6
    assert [cell.input_size for cell in network.cells] == [INPUT] * 2 + [2 * HIDDEN] * 4
    assert all(isinstance(cell.hidden, TTLinear) == (recurrent_ranks is not None) for cell in network.cells)


@KINDS
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_last_output_alone(kind: type[TTRecurrent], bidirectional: bool, batch_first: bool) -> None:
    """Each direction's own end: of the way back it is the first step."""
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "num_layers": 2}
    whole, last = kind(N, M, 3, **options), kind(N, M, 3, return_sequences=False, **options)
    last.load_state_dict(whole.state_dict())
    lengths = torch.tensor([5, 2, 3])
    x = torch.randn(*((3, 5) if batch_first else (5, 3)), INPUT)
    outputs, want_state = whole(x, lengths=lengths)
    outputs = outputs if batch_first else outputs.transpose(0, 1)
    got, state = last(x, lengths=lengths)
    forward = outputs[torch.arange(3), lengths - 1, :HIDDEN]
    alike(got, torch.cat([forward, outputs[:, 0, HIDDEN:]], -1), RECURRENCE)
    alike(state, want_state, RECURRENCE)
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    alike(last(packed), (got, state), RECURRENCE)
    assert last(x[0] if batch_first else x[:, 0])[0].shape == (HIDDEN * (1 + bidirectional),)


@KINDS
@pytest.mark.parametrize("num_layers", [1, 2])
def test_backwards_is_forwards_on_the_turned_sequence(kind: type[TTRecurrent], num_layers: int) -> None:
    """Keras' meaning: the first layer reads from the end, and its outputs go on in the order of reading."""
    forwards = kind(N, M, 3, num_layers=num_layers)
    backwards = kind(N, M, 3, num_layers=num_layers, go_backwards=True)
    backwards.load_state_dict(forwards.state_dict())
    x = torch.randn(6, 2, INPUT)
    alike(backwards(x), forwards(x.flip(0)), RECURRENCE)
    alike(backwards(x[:, 0]), forwards(x[:, 0].flip(0)), RECURRENCE)


@KINDS
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"recurrent_ranks": 2}], ids=str)
def test_stateful_goes_on_where_the_last_call_ended(kind: type[TTRecurrent], options: dict[str, Any]) -> None:
    plain, network = kind(N, M, 3, **options), kind(N, M, 3, stateful=True, **options)
    network.load_state_dict(plain.state_dict())
    x = torch.randn(9, 2, INPUT)
    whole, final = plain(x)
    first, _ = network(x[:4])
    second, state = network(x[4:])
    alike(torch.cat([first, second]), whole, RECURRENCE)
    alike(state, final, RECURRENCE)
    again, _ = network(x[:4])
    assert not torch.allclose(again, first)
    network.reset_state()
    alike(network(x[:4])[0], first, RECURRENCE)
    alike(plain(x[:4])[0], first, RECURRENCE)


def test_gradients_end_at_the_border_of_two_calls() -> None:
    network = TTGRU(N, M, 3, stateful=True)
    x = torch.randn(2, 1, INPUT, requires_grad=True)
    network(x)
    network(torch.randn(2, 1, INPUT))[0].sum().backward()
    assert x.grad is None


def test_a_given_state_comes_before_the_carried_one() -> None:
    network = TTGRU(N, M, 3, stateful=True)
    x, hx = torch.randn(3, 2, INPUT), torch.randn(1, 2, HIDDEN)
    want = network(x, hx)
    network(torch.randn(3, 2, INPUT))
    alike(network(x, hx), want, RECURRENCE)


def test_a_carried_state_for_another_batch_is_refused() -> None:
    network = TTGRU(N, M, 3, stateful=True)
    network(torch.zeros(3, 2, INPUT))
    with pytest.raises(ValueError, match=r"carries a batch of 2, got 3; call reset_state\(\) first"):
        network(torch.zeros(3, 3, INPUT))
    network.reset_state()
    network(torch.zeros(3, 3, INPUT))


@KINDS
def test_a_sequence_in_two_pieces_is_the_whole(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, num_layers=2)
    x = torch.randn(10, 2, INPUT)
    whole, final = network(x)
    first, state = network(x[:4])
    second, state = network(x[4:], state)
    alike(torch.cat([first, second]), whole, RECURRENCE)
    alike(state, final, RECURRENCE)


@KINDS
def test_every_parameter_learns(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, num_layers=2, bidirectional=True, recurrent_ranks=2)
    network(torch.randn(5, 2, INPUT), lengths=torch.tensor([5, 2]))[0].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


@KINDS
def test_reset_draws_all_layers_anew(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, num_layers=2)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.reset_parameters()
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == name.endswith("bias"), name


def test_the_papers_parameter_counts() -> None:
    """Yang, Krompass, Tresp 2017, table 1: 57600 -> 256 at rank 4."""
    layers = {name: kind((8, 20, 20, 18), (4, 4, 4, 4), 4).cells[0].projection for name, kind in NETWORKS.items()}
    assert layers["gru"].shape.num_parameters == 3232
    assert layers["lstm"].shape.num_parameters == 3360


@KINDS
def test_penalties_are_those_of_all_layers(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, num_layers=2, bidirectional=True, kernel_penalty=Penalty(l2=0.5))
    want = 0.5 * sum(cell.projection.full().square().sum() for cell in network.cells)
    assert torch.allclose(network.penalty(), want)
    assert kind(N, M, 3).penalty().item() == 0


@KINDS
def test_activity_penalty_only_in_training(kind: type[TTRecurrent]) -> None:
    network = kind(N, M, 3, activity_penalty=Penalty(l2=0.5))
    network(torch.randn(3, 2, INPUT))
    assert network.penalty().item() > 0
    network.eval()
    network(torch.randn(3, 2, INPUT))
    assert network.penalty().item() == 0


# ---- dropout


@KINDS
def test_one_recurrent_mask_a_sequence(kind: type[TTRecurrent], monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks that the steps really get: one tensor a direction and call, other units in other sequences."""
    network = kind(N, (4, 3, 2), 3, num_layers=2, bidirectional=True, recurrent_dropout=0.5)
    masks: list[list[torch.Tensor | None]] = [[] for _ in network.cells]
    for cell, seen in zip(network.cells, masks, strict=True):
        step = cell.step
        monkeypatch.setattr(
            cell, "step", lambda p, s, mask=None, step=step, seen=seen: seen.append(mask) or step(p, s, mask)
        )
    x = torch.randn(7, 3, INPUT)
    network(x)
    drawn = []
    for seen in masks:
        assert len(seen) == 7
        assert seen[0] is not None
        assert all(torch.equal(mask, seen[0]) for mask in seen)
        assert seen[0].shape == (3, 24)
        drawn.append(seen[0])
        assert not torch.equal(seen[0][0], seen[0][1])
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(one, other)
    network(x)
    assert not torch.equal(masks[0][0], masks[0][7])
    network.eval()
    network(x)
    assert all(mask is None for seen in masks for mask in seen[14:])


def test_the_recurrent_mask_shows_in_the_states() -> None:
    """With h' = h the state grows by 1 / (1 - p) where it is seen and is 0 where not: were there a new mask at each
    step, hardly a unit would be left after ten."""
    network = TTRNN(
        (4,), (40,), activation="linear", bias=False, recurrent_initialiser="identity", recurrent_dropout=0.2
    )
    network.cells[0].projection.set_cores([torch.zeros(1, 4, 40, 1)])
    hx = torch.ones(1, 3, 40)
    output, _ = network(torch.zeros(10, 3, 4), hx)
    kept = output[0] != 0
    assert 0.6 < float(kept.float().mean()) < 0.95
    for t in range(10):
        assert torch.allclose(output[t], kept * 1.25 ** (t + 1), rtol=CONTRACTION)
    network.eval()
    assert torch.equal(network(torch.zeros(10, 3, 4), hx)[0], torch.ones(10, 3, 40))


@KINDS
def test_dropout_is_between_layers_in_training_and_nowhere_else(kind: type[TTRecurrent]) -> None:
    network = kind(N, (4, 3, 2), 3, num_layers=3, bidirectional=True, dropout=0.25, batch_first=True)
    taken: list[torch.Tensor] = []
    for cell in network.cells:
        cell.projection.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    x = torch.randn(4, 6, INPUT)
    output, _ = network(x)
    first, second, third = taken[0:2], taken[2:4], taken[4:6]
    for pair in (first, second, third):
        assert torch.equal(*pair), "both directions read the same"
    assert torch.equal(first[0], x)
    assert bool((output != 0).all())

    def whole(layer: int, x: torch.Tensor) -> torch.Tensor:
        cells = network.cells[2 * layer : 2 * layer + 2]
        zeros = tuple(torch.zeros(4, 24) for _ in range(cells[0].num_states))
        ways = [recur(cell, cell.projection(x), zeros, None, backwards=k == 1)[0] for k, cell in enumerate(cells)]
        return torch.cat(ways, -1)

    for layer, read in enumerate((second[0], third[0])):
        made = whole(layer, (first, second)[layer][0])
        dropped = read == 0
        assert 0.15 < float(dropped.float().mean()) < 0.35
        assert torch.allclose(read[~dropped], made[~dropped] / 0.75, atol=RECURRENCE)
    assert torch.allclose(output, whole(2, third[0]), atol=RECURRENCE)

    network.eval()
    taken.clear()
    output, _ = network(x)
    assert torch.allclose(taken[2], whole(0, x), atol=RECURRENCE)
    assert torch.equal(network(x)[0], output)


# ---- from torch


@pytest.mark.parametrize(
    ("source", "convert"),
    [(nn.RNN, TTRNN.from_rnn), (nn.GRU, TTGRU.from_gru), (nn.LSTM, TTLSTM.from_lstm)],
    ids=["rnn", "gru", "lstm"],
)
class TestFromTorch:
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_exact_at_full_rank(
        self, source: Any, convert: Any, bidirectional: bool, bias: bool, num_layers: int
    ) -> None:
        options = {"bidirectional": bidirectional, "bias": bias, "num_layers": num_layers}
        for batch_first in (True, False):
            dense = source(INPUT, HIDDEN, batch_first=batch_first, **options)
            network = convert(dense, N, M)
            x = torch.randn(5, 4, INPUT)
            alike(network(x), dense(x), FROM_TORCH)
            hx = state_for(type(network), len(network.cells), 5 if batch_first else 4, HIDDEN, dtype=torch.float32)
            alike(network(x, hx), dense(x, hx), FROM_TORCH)

    def test_the_error_falls_as_the_rank_rises(self, source: Any, convert: Any) -> None:
        dense, x = source(INPUT, HIDDEN, num_layers=2), torch.randn(5, 4, INPUT)
        errors, distances = [], []
        for rank in (1, 2, 4, 6, 12):
            network = convert(dense, N, M, rank)
            weight = network.cells[0].projection.full().T
            errors.append((weight - dense.weight_ih_l0).norm().item())
            distances.append((network(x)[0] - dense(x)[0]).norm().item())
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > errors[1] > errors[2] > 10 * errors[-1]
        assert distances[0] > 10 * distances[-1]

    def test_the_error_asked_for_is_kept(self, source: Any, convert: Any) -> None:
        dense = source(INPUT, HIDDEN, num_layers=2)
        network = convert(dense, N, M, relative_error=0.4)
        for layer, cell in enumerate(network.cells):
            weight = getattr(dense, f"weight_ih_l{layer}")
            assert ((cell.projection.full().T - weight).norm() / weight.norm()).item() <= 0.4
        assert (
            network.cells[0].projection.shape.num_parameters
            < convert(dense, N, M).cells[0].projection.shape.num_parameters
        )

    def test_options_dtype_and_mode_are_kept(self, source: Any, convert: Any) -> None:
        dense = source(
            INPUT, HIDDEN, num_layers=2, dropout=0.3, batch_first=True, bidirectional=True, dtype=torch.double
        )
        network = convert(dense.eval(), N, M, 2)
        assert (network.num_layers, network.dropout, network.batch_first) == (2, 0.3, True)
        assert network.bidirectional
        assert {p.dtype for p in network.parameters()} == {torch.double}
        assert not any(module.training for module in network.modules())
        assert convert(dense.train(), N, M, 2).cells[0].training

    def test_the_source_is_left_alone(self, source: Any, convert: Any) -> None:
        dense = source(INPUT, HIDDEN)
        before = [p.detach().clone() for p in dense.parameters()]
        network = convert(dense, N, M)
        with torch.no_grad():
            for p in network.parameters():
                p.zero_()
        assert all(torch.equal(p, old) for p, old in zip(dense.parameters(), before, strict=True))

    def test_modes_that_do_not_fit_are_refused(self, source: Any, convert: Any) -> None:
        with pytest.raises(ValueError, match="input_modes, output_modes: expected to multiply to 13 and 6, got"):
            convert(source(13, HIDDEN), N, M)


def test_from_rnn_keeps_the_nonlinearity() -> None:
    dense, x = nn.RNN(INPUT, HIDDEN, nonlinearity="relu"), torch.randn(5, 4, INPUT)
    alike(TTRNN.from_rnn(dense, N, M)(x), dense(x), FROM_TORCH)


def test_from_lstm_refuses_a_projection() -> None:
    with pytest.raises(ValueError, match="proj_size=3"):
        TTLSTM.from_lstm(nn.LSTM(INPUT, HIDDEN, proj_size=3), N, M)


@KINDS
def test_a_converted_network_is_initialised_anew_with_its_gates_scale(kind: type[TTRecurrent]) -> None:
    convert = {TTRNN: TTRNN.from_rnn, TTGRU: TTGRU.from_gru, TTLSTM: TTLSTM.from_lstm}[kind]
    network = convert(ORACLES[kind](INPUT, HIDDEN), N, M)
    network.reset_parameters()
    weight = network.cells[0].projection.full().detach()
    assert float(weight.square().mean()) == pytest.approx(2 / (INPUT + HIDDEN), rel=1e-3)


# ---- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"num_layers": 2, "dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1\.0"),
        ({"dropout": 0.5}, "dropout: .* expected num_layers of at least 2, got 1"),
        ({"go_backwards": True, "bidirectional": True}, "go_backwards: .* bidirectional"),
        ({"recurrent_dropout": -1}, r"recurrent_dropout: expected a number in \[0, 1\), got -1"),
        ({"activation": "than"}, "activation: expected one of .* got 'than'"),
        ({"tt_ranks": (3, 3, 3)}, "tt_ranks: expected 4 positive ranks"),
        ({"output_modes": ()}, "as many input_modes as output_modes"),
        ({"output_modes": (2, 3)}, "as many input_modes as output_modes"),
    ],
    ids=str,
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTLSTM(**({"input_modes": N, "output_modes": M, "tt_ranks": 3} | options))


X = torch.zeros(5, 2, INPUT)
BAD_CALLS: list[tuple[type[TTRecurrent], dict[str, Any], str]] = [
    (TTGRU, {"input": torch.zeros(5)}, r"input: expected \[time, input\] or a batch of it, got \[5\]"),
    (TTGRU, {"input": torch.zeros(5, 2, 2, INPUT)}, r"input: expected .* got \[5, 2, 2, 12\]"),
    (TTGRU, {"input": torch.zeros(5, 2, 13)}, r"expected inputs \[\.\.\., 12\] .* got \[.*13\]"),
    (TTGRU, {"input": X.double()}, r"expected inputs of torch\.float32, .* got torch\.float64"),
    (TTGRU, {"hx": torch.zeros(1, 3, 6)}, r"hx: expected 1 state\(s\) of shape \[1, 2, 6\], got \[\[1, 3, 6\]\]"),
    (TTGRU, {"hx": torch.zeros(2, 6)}, r"hx: expected 1 state\(s\) of shape \[1, 2, 6\], got \[\[2, 6\]\]"),
    (TTLSTM, {"hx": torch.zeros(1, 2, 6)}, r"hx: expected 2 state\(s\) of shape \[1, 2, 6\], got \[\[1, 2, 6\]\]"),
    (TTGRU, {"hx": torch.zeros(1, 2, 6).double()}, r"hx: expected .*float32.* got .*float64"),
    (TTLSTM, {"hx": (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6).double())}, r"hx: expected .*float32.* got .*float64"),
    (TTGRU, {"hx": torch.zeros(1, 2, 6, device="meta")}, r"hx: expected .*cpu.* got .*meta"),
    (TTGRU, {"lengths": torch.tensor([5, 6])}, "lengths: expected 0 to 5, the time axis, got 5 to 6"),
    (TTGRU, {"lengths": [-1, 5]}, "lengths: expected 0 to 5, the time axis, got -1 to 5"),
    (TTGRU, {"lengths": [5]}, r"lengths: expected shape \[2\], got \[1\]"),
    (TTGRU, {"lengths": torch.tensor([[5, 5]])}, r"lengths: expected shape \[2\], got \[1, 2\]"),
    (TTGRU, {"lengths": torch.tensor([1.5, 2.0])}, r"lengths: expected .*int.* got .*float"),
    (TTGRU, {"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask: expected bool \[2, 5\], got torch\.bool \[2, 4\]"),
    (TTGRU, {"mask": torch.ones(5, 2, dtype=torch.bool)}, r"mask: expected bool \[2, 5\], got torch\.bool \[5, 2\]"),
    (TTGRU, {"mask": torch.ones(2, 5)}, r"mask: expected bool \[2, 5\], got torch\.float32 \[2, 5\]"),
    (TTGRU, {"lengths": [5, 5], "mask": torch.ones(2, 5, dtype=torch.bool)}, "lengths, mask: expected one of them"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_a_call_that_does_not_fit_is_refused(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(N, M, 3)(**({"input": X} | arguments))


def test_a_packed_sequence_has_its_own_lengths() -> None:
    packed = pack_padded_sequence(X, torch.tensor([5, 2]))
    for more in ({"lengths": [5, 2]}, {"mask": torch.ones(2, 5, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="lengths, mask: expected neither beside a PackedSequence"):
            TTGRU(N, M, 3)(packed, **more)
    with pytest.raises(ValueError, match="go_backwards, got a PackedSequence"):
        TTGRU(N, M, 3, go_backwards=True)(packed)

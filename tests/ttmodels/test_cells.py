"""One step: against torch's cells at full rank, and against the formulas of Keras written out in NumPy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tolerances import CONTRACTION, DOUBLE_RECURRENCE, ORTHOGONAL
from ttmodels.cells import TTCell, TTGRUCell, TTLSTMCell, TTRNNCell
from ttmodels.constraints import NonNegative, Penalty
from ttmodels.contraction import Plan
from ttmodels.linear import TTLinear
from ttmodels.recurrent import TTGRU, TTLSTM, TTRNN, TTRecurrent
from ttmodels.tensor_train import tt_svd

ORACLES = {TTRNNCell: nn.RNNCell, TTGRUCell: nn.GRUCell, TTLSTMCell: nn.LSTMCell}
NETWORKS: dict[type[TTCell], type[TTRecurrent]] = {TTRNNCell: TTRNN, TTGRUCell: TTGRU, TTLSTMCell: TTLSTM}
KINDS = pytest.mark.parametrize("kind", list(ORACLES), ids=lambda kind: kind.__name__)
N, M = (3, 4), (2, 3)
INPUT, HIDDEN = 12, 6


@torch.no_grad()
def set_weights(cell: TTCell, w: Any, u: Any, b: Any = None, c: Any = None) -> None:
    """W [input, gates] by a TT-SVD of full rank, U [gates, hidden], and the two biases."""
    shape = cell.projection.shape
    cell.projection.set_cores(tt_svd(torch.as_tensor(w), shape.input_modes, shape.output_modes))
    cell.hidden.weight.copy_(torch.as_tensor(u))
    for bias, value in ((cell.projection.bias, b), (cell.hidden.bias, c)):
        if bias is not None:
            bias.copy_(torch.as_tensor(value)) if value is not None else bias.zero_()


def parts(state: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else state


def state_for(kind: type[TTCell], *shape: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
    made = tuple(torch.randn(*shape, dtype=torch.double) for _ in range(kind.num_states))
    return made if len(made) > 1 else made[0]


def twins(kind: type[TTCell], bias: bool = True) -> tuple[TTCell, nn.RNNCellBase]:
    oracle = ORACLES[kind](INPUT, HIDDEN, bias=bias, dtype=torch.double)
    cell = kind(N, M, bias=bias, dtype=torch.double)
    set_weights(cell, oracle.weight_ih.T, oracle.weight_hh, oracle.bias_ih, oracle.bias_hh)
    return cell, oracle


# ---- torch


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("rows", [(5,), (1,), ()], ids=["batch", "one", "unbatched"])
def test_full_rank_equals_torchs_cell(kind: type[TTCell], bias: bool, with_state: bool, rows: tuple[int, ...]) -> None:
    cell, oracle = twins(kind, bias)
    x = torch.randn(*rows, INPUT, dtype=torch.double)
    state = state_for(kind, *rows, HIDDEN) if with_state else None
    got, want = parts(cell(x, state)), parts(oracle(x, state))
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, atol=DOUBLE_RECURRENCE)


@KINDS
def test_a_loop_over_the_cell_is_the_network(kind: type[TTCell]) -> None:
    network = NETWORKS[kind](N, M, 3, dtype=torch.double)
    x = torch.randn(7, 2, INPUT, dtype=torch.double)
    want, final = network(x)
    state = None
    for step, output in zip(x, want, strict=True):
        state = network.cells[0](step, state)
        assert torch.allclose(parts(state)[0], output, atol=DOUBLE_RECURRENCE)
    for mine, theirs in zip(parts(state), parts(final), strict=True):
        assert torch.allclose(mine, theirs[0], atol=DOUBLE_RECURRENCE)


@KINDS
def test_gradcheck(kind: type[TTCell]) -> None:
    cell = kind((2, 2), (2, 1), 2, dtype=torch.double)
    names, values = zip(*cell.named_parameters(), strict=True)
    x = torch.randn(2, 4, dtype=torch.double, requires_grad=True)
    state = tuple(torch.randn(2, 2, dtype=torch.double, requires_grad=True) for _ in range(kind.num_states))

    def call(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        given, values = rest[: len(state)], rest[len(state) :]
        return torch.func.functional_call(cell, dict(zip(names, values, strict=True)), (x, given))

    assert torch.autograd.gradcheck(call, (x, *state, *values))


# ---- Keras: gates z, r, h and i, f, c, o; h' = z h + (1 - z) h~; reset before; hard_sigmoid

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def keras_rnn(x: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, f: str) -> np.ndarray:
    """h_t = f(x_t W + b + h_{t-1} U); x [time, batch, input], W [input, hidden], U [hidden, hidden]."""
    h = np.zeros((x.shape[1], HIDDEN))
    outputs = []
    for x_t in x:
        h = FUNCTIONS[f](x_t @ w + b + h @ u)
        outputs.append(h)
    return np.stack(outputs)


def keras_gru(
    x: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, c: np.ndarray, f: str, s: str, *, reset_after: bool
) -> np.ndarray:
    """z = s(x W_z + h U_z), r = s(x W_r + h U_r); h~ = f(x W_h + (r h) U_h), or f(x W_h + r (h U_h + c_h)) reset after;
    h' = z h + (1 - z) h~. c is the recurrent bias, which there is only with the reset after."""
    h = np.zeros((x.shape[1], HIDDEN))
    (wz, wr, wh), (uz, ur, uh) = np.split(w, 3, 1), np.split(u, 3, 1)
    (bz, br, bh), (cz, cr, ch) = np.split(b, 3), np.split(c, 3)
    outputs = []
    for x_t in x:
        z = FUNCTIONS[s](x_t @ wz + bz + h @ uz + cz)
        r = FUNCTIONS[s](x_t @ wr + br + h @ ur + cr)
        inner = r * (h @ uh + ch) if reset_after else (r * h) @ uh
        h = z * h + (1 - z) * FUNCTIONS[f](x_t @ wh + bh + inner)
        outputs.append(h)
    return np.stack(outputs)


def keras_lstm(x: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, f: str, s: str) -> np.ndarray:
    """i, f, o = s(..), c~ = a(..), c' = f c + i c~, h' = o a(c'); gates in the order i, f, c, o."""
    h = c = np.zeros((x.shape[1], HIDDEN))
    outputs = []
    for x_t in x:
        i, forget, candidate, o = np.split(x_t @ w + h @ u + b, 4, 1)
        c = FUNCTIONS[s](forget) * c + FUNCTIONS[s](i) * FUNCTIONS[f](candidate)
        h = FUNCTIONS[s](o) * FUNCTIONS[f](c)
        outputs.append(h)
    return np.stack(outputs)


def drawn(num_gates: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    size = num_gates * HIDDEN
    x, w = rng.normal(size=(9, 3, INPUT)), rng.normal(size=(INPUT, size))
    return x, w / 2, rng.normal(size=(HIDDEN, size)) / 2, rng.normal(size=size), rng.normal(size=size)


def reordered(values: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Blocks along the last axis in another order."""
    blocks = np.split(values, len(order), -1)
    return np.concatenate([blocks[k] for k in order], -1)


def run(network: TTRecurrent, x: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(x))[0].detach().numpy()


@pytest.mark.parametrize("f", ["tanh", "relu", "linear"])
def test_keras_rnn(f: str) -> None:
    x, w, u, b, _ = drawn(1)
    u = u / 3  # without a squashing activation the state must not grow
    network = TTRNN(N, M, activation=f, dtype=torch.double)
    set_weights(network.cells[0], w, u.T, b)
    assert np.allclose(run(network, x), keras_rnn(x, w, u, b, f), atol=DOUBLE_RECURRENCE)


@pytest.mark.parametrize("f", ["tanh", "relu"])
@pytest.mark.parametrize("s", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_keras_gru(f: str, s: str, reset_after: bool) -> None:
    x, w, u, b, c = drawn(3)
    network = TTGRU(N, M, activation=f, recurrent_activation=s, reset_after=reset_after, dtype=torch.double)
    if not reset_after:
        c = np.zeros_like(c)
    ours = [reordered(values, (1, 0, 2)) for values in (w, u, b, c)]  # z, r, h -> r, z, n
    set_weights(network.cells[0], ours[0], ours[1].T, ours[2], ours[3])
    want = keras_gru(x, w, u, b, c, f, s, reset_after=reset_after)
    assert np.allclose(run(network, x), want, atol=DOUBLE_RECURRENCE)


@pytest.mark.parametrize("f", ["tanh", "relu"])
@pytest.mark.parametrize("s", ["sigmoid", "hard_sigmoid"])
def test_keras_lstm(f: str, s: str) -> None:
    """Keras' order i, f, c, o is torch's i, f, g, o."""
    x, w, u, b, _ = drawn(4)
    network = TTLSTM(N, M, activation=f, recurrent_activation=s, dtype=torch.double)
    set_weights(network.cells[0], w, u.T, b)
    assert np.allclose(run(network, x), keras_lstm(x, w, u, b, f, s), atol=DOUBLE_RECURRENCE)


# ---- options


def steps(kind: type[TTCell], **options: Any) -> torch.Tensor:
    """h after two steps from a state, with the same seed for all options."""
    torch.manual_seed(1)
    cell = kind(N, M, 3, **options)
    generator = torch.Generator().manual_seed(2)
    dtype = options.get("dtype", torch.float32)
    x = [torch.randn(3, INPUT, generator=generator).to(dtype) for _ in range(2)]
    state: Any = tuple(torch.randn(3, HIDDEN, generator=generator).to(dtype) for _ in range(kind.num_states))
    for step in x:
        state = cell(step, state)
    return parts(state)[0].detach()


OPTIONS: dict[str, Any] = {
    "activation": "softsign",
    "recurrent_activation": "hard_sigmoid",
    "recurrent_initialiser": "glorot_uniform",
    "recurrent_ranks": 2,
    "recurrent_dropout": 0.5,
    "kernel_initialiser": "he_uniform",
    "bias_initialiser": nn.init.ones_,
    "kernel_constraint": NonNegative,
}


@KINDS
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_state(kind: type[TTCell], option: str) -> None:
    if kind is TTRNNCell and option == "recurrent_activation":
        pytest.skip("a simple RNN has no gates: the option is refused")
    assert not torch.allclose(steps(kind), steps(kind, **{option: OPTIONS[option]}))


def test_every_option_is_tested() -> None:
    keywords = [p.name for p in inspect.signature(TTCell).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert set(keywords) - {"bias"} <= set(OPTIONS)


def test_a_simple_rnn_has_no_gates_to_activate() -> None:
    """An option that does nothing is a defect: it is refused, or not there."""
    with pytest.raises((TypeError, ValueError), match="recurrent_activation"):
        TTRNNCell(N, M, 3, recurrent_activation="hard_sigmoid")


@KINDS
def test_without_bias_there_is_none(kind: type[TTCell]) -> None:
    cell = kind(N, M, 3, bias=False)
    assert cell.projection.bias is None
    assert cell.hidden.bias is None


def test_the_gru_heeds_where_it_resets() -> None:
    assert not torch.allclose(steps(TTGRUCell), steps(TTGRUCell, reset_after=False))


def test_the_forget_gate_starts_open_or_not() -> None:
    assert TTLSTMCell(N, M, 2).hidden.bias.tolist() == [0] * 6 + [1] * 6 + [0] * 12
    assert not bool(TTLSTMCell(N, M, 2, unit_forget_bias=False).hidden.bias.any())
    assert TTLSTMCell(N, M, 2, recurrent_ranks=2).hidden.bias.tolist() == [0] * 6 + [1] * 6 + [0] * 12
    assert not torch.allclose(steps(TTLSTMCell), steps(TTLSTMCell, unit_forget_bias=False))


@KINDS
def test_options_reach_the_projection(kind: type[TTCell]) -> None:
    plan = Plan((1, 1), "left_to_right")
    cell = kind(N, M, 2, plan=plan, kernel_penalty=Penalty(l2=1.0), bias_penalty=Penalty(l1=1.0), dtype=torch.double)
    assert cell.projection.plan == plan
    assert cell.projection.kernel_penalty == Penalty(l2=1.0)
    assert cell.projection.bias_penalty == Penalty(l1=1.0)
    assert {p.dtype for p in cell.parameters()} == {torch.double}
    assert {p.device.type for p in kind(N, M, 2, device="meta").parameters()} == {"meta"}
    assert {p.device.type for p in kind(N, M, 2, recurrent_ranks=2, device="meta").parameters()} == {"meta"}


# ---- recurrent initialisers


def blocks_of(cell: TTCell) -> tuple[torch.Tensor, ...]:
    return cell.hidden.weight.detach().split(cell.hidden_size)


@KINDS
def test_hidden_blocks_start_orthogonal_and_differ(kind: type[TTCell]) -> None:
    blocks = blocks_of(kind(N, M, 2))
    assert len(blocks) == kind.num_gates
    for i, block in enumerate(blocks):
        assert torch.allclose(block @ block.T, torch.eye(HIDDEN), atol=ORTHOGONAL)
        assert not any(torch.allclose(block, other) for other in blocks[:i])


@KINDS
def test_hidden_blocks_by_name(kind: type[TTCell]) -> None:
    assert all(torch.equal(b, torch.eye(HIDDEN)) for b in blocks_of(kind(N, M, 2, recurrent_initialiser="identity")))
    large = (8, 8), (8, 8)
    for name in ("glorot_normal", "glorot_uniform"):
        for block in blocks_of(kind(*large, 2, recurrent_initialiser=name)):
            assert float(block.square().mean()) == pytest.approx(2 / 128, rel=0.2)
    bound = math.sqrt(6 / 128)
    uniform = blocks_of(kind(*large, 2, recurrent_initialiser="glorot_uniform"))
    assert 0.9 * bound < max(float(block.abs().max()) for block in uniform) <= bound
    normal = blocks_of(kind(*large, 2, recurrent_initialiser="glorot_normal"))
    assert max(float(block.abs().max()) for block in normal) > bound


@KINDS
def test_hidden_blocks_by_a_callable(kind: type[TTCell]) -> None:
    seen = []
    cell = kind(N, M, 2, recurrent_initialiser=lambda block: seen.append(tuple(block.shape)) or block.fill_(3))
    assert set(seen) == {(HIDDEN, HIDDEN)}
    assert bool((cell.hidden.weight == 3).all())


@pytest.mark.parametrize("initialiser", ["identity", "orthogonal"])
def test_the_recurrent_initialiser_holds_for_a_train_too(initialiser: str) -> None:
    """An option that does nothing is a defect: heeded, or refused by its name."""
    try:
        cell = TTRNNCell(N, (4, 4), recurrent_ranks=16, recurrent_initialiser=initialiser)
    except ValueError as error:
        assert "recurrent_initialiser" in str(error)  # noqa: PT017
        return
    matrix = cell.hidden.full().detach()
    want = torch.eye(16)
    assert torch.allclose(matrix @ matrix.T if initialiser == "orthogonal" else matrix, want, atol=ORTHOGONAL)


@KINDS
def test_reset_draws_all_weights_anew(kind: type[TTCell]) -> None:
    cell = kind(N, M, 2, bias_initialiser=nn.init.normal_)
    before = {name: value.detach().clone() for name, value in cell.named_parameters()}
    with torch.no_grad():
        cell.hidden.bias.fill_(7)
    cell.reset_parameters()
    for name, value in cell.named_parameters():
        assert torch.equal(value, before[name]) == (name == "hidden.bias"), name


# ---- the hidden-to-hidden train


@KINDS
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_hidden_train_is_the_dense_matrix_that_it_stands_for(kind: type[TTCell], reset_after: bool) -> None:
    options = {"reset_after": reset_after} if kind is TTGRUCell else {}
    cell = kind(N, M, 3, recurrent_ranks=2, dtype=torch.double, **options)
    dense = kind(N, M, 3, dtype=torch.double, **options)
    assert isinstance(cell.hidden, TTLinear)
    assert cell.hidden.shape.tt_ranks == (1, 2, 1)
    nn.init.normal_(cell.hidden.bias)
    with torch.no_grad():
        dense.projection.load_state_dict(cell.projection.state_dict())
        dense.hidden.weight.copy_(cell.hidden.full().T)
        dense.hidden.bias.copy_(cell.hidden.bias)
    x, state = torch.randn(3, INPUT, dtype=torch.double), state_for(kind, 3, HIDDEN)
    for mine, theirs in zip(parts(cell(x, state)), parts(dense(x, state)), strict=True):
        assert torch.allclose(mine, theirs, atol=DOUBLE_RECURRENCE)


# ---- recurrent dropout


@KINDS
def test_the_recurrent_mask_is_scaled_and_only_in_training(kind: type[TTCell]) -> None:
    cell = kind((4,), (100,), recurrent_dropout=0.25)
    mask = cell.recurrent_mask(torch.zeros(50, 4))
    assert mask is not None
    assert mask.shape == (50, 100)
    assert set(mask.unique().tolist()) == {0, torch.tensor(1 / 0.75).item()}
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert cell.eval().recurrent_mask(torch.zeros(50, 4)) is None
    assert kind((4,), (100,)).recurrent_mask(torch.zeros(50, 4)) is None


@KINDS
def test_the_hidden_product_sees_the_masked_state(kind: type[TTCell]) -> None:
    """A unit that is masked out does not reach the hidden product; a GRU still carries it over."""
    cell = kind(N, M, 3)
    projected, state = (
        torch.randn(2, cell.num_gates * HIDDEN),
        tuple(torch.randn(2, HIDDEN) for _ in range(cell.num_states)),
    )
    seen = []
    cell.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mask = torch.tensor([0.0, 2, 2, 0, 2, 2]).expand(2, 6)
    cell.step(projected, state, mask)
    assert torch.allclose(seen[0], state[0] * mask, atol=CONTRACTION)
    if kind is TTGRUCell:
        projected[:, HIDDEN : 2 * HIDDEN] = 100  # the update gate is shut
        new = cell.step(projected, state, mask)
        assert torch.allclose(new[0], state[0], atol=CONTRACTION)
    if kind is TTLSTMCell:
        projected[:, : 2 * HIDDEN] = torch.tensor([-100.0] * HIDDEN + [100.0] * HIDDEN)  # nothing in, nothing out
        new = cell.step(projected, state, mask)
        assert torch.allclose(new[1], state[1], atol=CONTRACTION)


@KINDS
def test_dropping_the_state_is_random_in_training_and_off_in_evaluation(kind: type[TTCell]) -> None:
    cell, x = kind(N, M, 3, recurrent_dropout=0.5), torch.randn(3, INPUT)
    state = tuple(torch.randn(3, HIDDEN) for _ in range(kind.num_states))
    assert not torch.equal(parts(cell(x, state))[0], parts(cell(x, state))[0])
    cell.eval()
    assert torch.equal(parts(cell(x, state))[0], parts(cell(x, state))[0])


# ---- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "than"}, r"^activation: expected one of .* got 'than'"),
        ({"recurrent_activation": "hard"}, r"^recurrent_activation: expected one of .* got 'hard'"),
        ({"recurrent_initialiser": "eye"}, r"recurrent_initialiser: expected one of orthogonal, .* got 'eye'"),
        ({"recurrent_dropout": 1.0}, r"recurrent_dropout: expected a number in \[0, 1\), got 1\.0"),
        ({"recurrent_dropout": -0.1}, r"recurrent_dropout: expected a number in \[0, 1\), got -0\.1"),
        ({"recurrent_ranks": (2, 2)}, "tt_ranks: expected 3 positive ranks|recurrent_ranks: expected"),
        ({"output_modes": ()}, "as many input_modes as output_modes"),
        ({"output_modes": (2, 3, 1)}, r"as many input_modes as output_modes, .* got \(3, 4\) and"),
        ({"output_modes": (2, 0)}, "output_modes: expected positive integers"),
    ],
    ids=str,
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTGRUCell(**({"input_modes": N, "output_modes": M, "tt_ranks": 3} | options))


def test_a_wrong_rank_of_the_hidden_train_names_its_argument() -> None:
    with pytest.raises(ValueError, match="recurrent_ranks"):
        TTGRUCell(N, M, 3, recurrent_ranks=0)


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        (TTGRUCell, torch.zeros(2, 5), r"state: expected 1 of shape \[2, 6\], got \[\[2, 5\]\]"),
        (TTGRUCell, torch.zeros(3, 6), r"state: expected 1 of shape \[2, 6\], got \[\[3, 6\]\]"),
        (TTLSTMCell, torch.zeros(2, 6), r"state: expected 2 of shape \[2, 6\], got \[\[2, 6\]\]"),
        (TTRNNCell, torch.zeros(2, 6).double(), r"state: expected .*float32.* got .*float64"),
        (TTGRUCell, torch.zeros(2, 6, device="meta"), r"state: expected .*cpu.* got .*meta"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(kind: type[TTCell], state: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(N, M, 3)(torch.zeros(2, INPUT), state)

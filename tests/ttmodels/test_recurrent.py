import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.tolerances import RECURRENCE
from ttmodels.recurrent import CELLS, TTGRU, TTLSTM, TTRNN, TTRecurrent
from ttmodels.tensor_train import tt_svd

ORACLES = {TTRNN: nn.RNN, TTGRU: nn.GRU, TTLSTM: nn.LSTM}
PAIRS = pytest.mark.parametrize("kind", list(ORACLES), ids=lambda kind: kind.__name__)


@torch.no_grad()
def twins(kind: type[TTRecurrent]) -> tuple[TTRecurrent, nn.RNNBase]:
    """A TT network of full rank with the weights of torch's own."""
    oracle = ORACLES[kind](60, 8, batch_first=True)
    rnn = kind((3, 4, 5), (2, 2, 2), 1000)
    for core, value in zip(rnn.projection.cores, tt_svd(oracle.weight_ih_l0.T, rnn.projection.shape), strict=True):
        core.copy_(value)
    rnn.projection.bias.copy_(oracle.bias_ih_l0)
    rnn.weight_hh.copy_(oracle.weight_hh_l0)
    rnn.bias_hh.copy_(oracle.bias_hh_l0)
    return rnn, oracle


def states(state: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else state


@PAIRS
def test_full_rank_equals_torch(kind: type[TTRecurrent]) -> None:
    rnn, oracle = twins(kind)
    x = torch.randn(3, 11, 60)
    (got, got_state), (want, want_state) = rnn(x), oracle(x)
    assert torch.allclose(got, want, atol=RECURRENCE)
    for mine, theirs in zip(states(got_state), states(want_state), strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, atol=RECURRENCE)


@PAIRS
def test_lengths_equal_torchs_packed_sequence(kind: type[TTRecurrent]) -> None:
    rnn, oracle = twins(kind)
    x, lengths = torch.randn(4, 9, 60), torch.tensor([9, 1, 4, 7])
    got, got_state = rnn(x, lengths)
    packed, want_state = oracle(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    want, _ = pad_packed_sequence(packed, batch_first=True)
    assert torch.allclose(got, want, atol=RECURRENCE)
    for mine, theirs in zip(states(got_state), states(want_state), strict=True):
        assert torch.allclose(mine, theirs, atol=RECURRENCE)


@PAIRS
def test_a_sequence_in_two_pieces_is_the_whole(kind: type[TTRecurrent]) -> None:
    rnn, _ = twins(kind)
    x = torch.randn(2, 10, 60)
    whole, _ = rnn(x)
    first, state = rnn(x[:, :4])
    second, _ = rnn(x[:, 4:], state=state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=RECURRENCE)


@PAIRS
def test_gradients_reach_every_parameter(kind: type[TTRecurrent]) -> None:
    rnn, _ = twins(kind)
    rnn(torch.randn(2, 5, 60), torch.tensor([5, 2]))[0].sum().backward()
    for name, parameter in rnn.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_the_papers_parameter_counts() -> None:
    """Yang, Krompass, Tresp 2017, table 1: 57600 -> 256 at rank 4."""
    layers = {cell: kind((8, 20, 20, 18), (4, 4, 4, 4), 4).projection for cell, kind in CELLS.items()}
    assert layers["gru"].shape.num_parameters == 3232
    assert layers["lstm"].shape.num_parameters == 3360


def test_the_forget_gate_starts_open() -> None:
    rnn = TTLSTM((3, 4), (2, 2), 2)
    assert rnn.bias_hh[4:8].tolist() == [1, 1, 1, 1]
    assert float(rnn.bias_hh.detach().abs().sum()) == 4


def test_hidden_blocks_start_orthogonal() -> None:
    for block in TTGRU((3, 4), (2, 4), 2).weight_hh.detach().view(3, 8, 8):
        assert torch.allclose(block @ block.T, torch.eye(8), atol=RECURRENCE)


def test_a_state_of_another_shape_is_refused() -> None:
    rnn = TTLSTM((3, 4), (2, 2), 2)
    with pytest.raises(ValueError, match=r"expected 2 state\(s\) of shape \[1, 2, 4\]"):
        rnn(torch.zeros(2, 3, 12), state=torch.zeros(1, 2, 4))

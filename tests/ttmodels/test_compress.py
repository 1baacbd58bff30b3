"""compress: on networks of torch's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ttmodels
from tests.tolerances import FROM_TORCH
from ttmodels.initialisers import random_cores
from ttmodels.linear import TTLinear
from ttmodels.recurrent import TTGRU, TTLSTM, TTRNN
from ttmodels.tensor_train import TTShape, full

X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Somebody's network: an embedding, a recurrence, a block of dense layers, and a small head."""

    def __init__(self, rnn: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.rnn = rnn(48, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 60, bias=False))
        self.head = nn.Linear(60, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.rnn(self.first(x).tanh())[0]))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("rnn", "train"), [(nn.RNN, TTRNN), (nn.GRU, TTGRU), (nn.LSTM, TTLSTM)], ids=["rnn", "gru", "lstm"]
)
def test_wanted_layers_are_replaced_and_the_original_left(rnn: type[nn.RNNBase], train: type[nn.Module]) -> None:
    model = Net(rnn).eval()
    before, want = copy.deepcopy(model.state_dict()), model(X)
    small, report = ttmodels.compress(model, tt_ranks=6)
    assert isinstance(small, Net)
    assert small is not model
    assert [type(small.first), type(small.rnn), type(small.body[0])] == [TTLinear, train, TTLinear]
    assert torch.equal(model(X), want)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert small(X).shape == want.shape
    assert {layer.name: layer.kind for layer in report.layers} == {
        "first": "linear",
        "rnn": rnn.__name__.lower(),
        "body.0": "linear",
        "body.2": "linear",
    }
    assert not small.training
    assert not any(module.training for module in small.modules())


def test_the_report_counts() -> None:
    model = Net()
    small, report = ttmodels.compress(model, tt_ranks=4)
    assert (report.parameters_before, report.parameters_after) == (count(model), count(small))
    assert report.compression == pytest.approx(count(model) / count(small))
    assert report.compression > 1
    saved = 0
    for layer in report.layers:
        assert layer.parameters_before == count(model.get_submodule(layer.name))
        assert layer.parameters_after == count(small.get_submodule(layer.name)) < layer.parameters_before
        saved += layer.parameters_before - layer.parameters_after
    assert saved == report.parameters_before - report.parameters_after
    first = report.layers[0]
    assert first.shape == small.first.shape == TTShape((4, 4, 4), (3, 4, 4), (1, 4, 4, 1))


def test_the_report_measures_the_error() -> None:
    model = Net()
    small, report = ttmodels.compress(model, tt_ranks=4)
    errors = {layer.name: layer.relative_error for layer in report.layers}
    weight = model.first.weight
    assert errors["first"] == pytest.approx(((small.first.full().T - weight).norm() / weight.norm()).item(), rel=1e-4)
    of_cells = []
    for cell, suffix in zip(small.rnn.cells, ("l0", "l0_reverse", "l1", "l1_reverse"), strict=True):
        weight = getattr(model.rnn, f"weight_ih_{suffix}")
        of_cells.append(((cell.projection.full().T - weight).norm() / weight.norm()).item())
    assert errors["rnn"] == pytest.approx(max(of_cells), rel=1e-4)


def test_the_report_is_a_table() -> None:
    _, report = ttmodels.compress(Net(), tt_ranks=4)
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.layers)
    for layer, line in zip(report.layers, lines[1:], strict=False):
        assert line.startswith(layer.name)
        for part in (layer.kind, f"{layer.parameters_before:,}", f"{layer.parameters_after:,}"):
            assert part in line
    assert f"{report.parameters_before:,}" in lines[-1]
    assert f"{report.parameters_after:,}" in lines[-1]


def low_rank(layer: nn.Linear, rank: int) -> None:
    """Give a dense layer a weight that is a train of this rank."""
    shape = TTShape.make((4, 4, 4), (4, 4, 4), rank)
    layer.weight.data.copy_(full(random_cores(shape, 0.1)).T)


def test_a_weight_that_is_a_train_is_found_without_loss() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
    low_rank(model[0], 3)
    for options in ({"tt_ranks": 3}, {"relative_error": 1e-4}):
        small, report = ttmodels.compress(model, **options)
        assert small[0].shape.tt_ranks == (1, 3, 3, 1)
        assert torch.allclose(small(X), model(X), atol=FROM_TORCH)
        assert report.layers[0].relative_error < FROM_TORCH


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_the_error_asked_for_is_kept(error: float) -> None:
    """A train of rank 2 and noise a tenth of its size: a looser bound drops the noise."""
    model = nn.Sequential(nn.Linear(64, 64))
    low_rank(model[0], 2)
    weight = model[0].weight.data
    noise = torch.randn_like(weight)
    weight += 0.1 * weight.norm() / noise.norm() * noise
    small, report = ttmodels.compress(model, relative_error=error)
    assert report.layers[0].relative_error <= error
    assert (small[0].shape.tt_ranks == (1, 2, 2, 1)) == (error > 0.1)


def test_a_higher_rank_errs_less_and_saves_less() -> None:
    reports = [ttmodels.compress(Net(), tt_ranks=rank)[1] for rank in (1, 2, 4, 8)]
    errors = [report.layers[0].relative_error for report in reports]
    sizes = [report.parameters_after for report in reports]
    assert errors == sorted(set(errors), reverse=True)
    assert sizes == sorted(set(sizes))


def test_a_layer_that_a_train_would_not_make_smaller_is_left_alone() -> None:
    small, report = ttmodels.compress(Net(), tt_ranks=1000)
    assert report.layers == ()
    assert report.compression == 1
    assert type(small.first) is nn.Linear
    assert "head" not in {layer.name for layer in ttmodels.compress(Net(), tt_ranks=2, num_modes=1)[1].layers}


def test_only_wanted_layers_are_replaced() -> None:
    asked = []

    def wanted(name: str, layer: nn.Module) -> bool:
        asked.append((name, type(layer)))
        return name.startswith("body")

    _, report = ttmodels.compress(Net(), tt_ranks=2, wanted=wanted)
    assert [layer.name for layer in report.layers] == ["body.0", "body.2"]
    assert ("rnn", nn.GRU) in asked
    assert ("first", nn.Linear) in asked


@pytest.mark.parametrize("num_modes", [2, 3, 4])
def test_num_modes_is_the_number_of_cores(num_modes: int) -> None:
    _, report = ttmodels.compress(Net(), tt_ranks=2, num_modes=num_modes)
    assert {layer.shape.num_cores for layer in report.layers} == {num_modes}


def test_inplace_changes_the_model_itself() -> None:
    model = Net()
    small, _ = ttmodels.compress(model, tt_ranks=2, inplace=True)
    assert small is model
    assert isinstance(model.first, TTLinear)


def test_a_layer_on_its_own_is_replaced() -> None:
    small, report = ttmodels.compress(nn.Linear(64, 64), tt_ranks=2)
    assert isinstance(small, TTLinear)
    assert len(report.layers) == 1


def test_a_layer_used_twice_is_replaced_once() -> None:
    shared = nn.Linear(64, 64)
    small, report = ttmodels.compress(nn.Sequential(shared, nn.ReLU(), shared), tt_ranks=2)
    assert small[0] is small[2]
    assert isinstance(small[0], TTLinear)
    assert len(report.layers) == 1


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model.requires_grad_(False)
    small, _ = ttmodels.compress(model, tt_ranks=2)
    assert not any(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_each_frozen_parameter_of_a_recurrent_network_stays_frozen(kind: type[nn.RNNBase]) -> None:
    model = nn.Sequential(kind(64, 16, num_layers=2, bidirectional=True))
    rnn = model[0]
    for frozen in (rnn.weight_ih_l0, rnn.weight_hh_l1, rnn.bias_ih_l1_reverse, rnn.bias_hh_l0_reverse):
        frozen.requires_grad_(False)
    small, _ = ttmodels.compress(model, tt_ranks=2, num_modes=2)
    cells = small[0].cells
    assert [core.requires_grad for core in cells[0].projection.cores] == [False, False]
    assert [not cells[2].hidden.weight.requires_grad, not cells[3].projection.bias.requires_grad] == [True, True]
    assert not cells[1].hidden.bias.requires_grad
    assert sum(not p.requires_grad for p in small.parameters()) == 2 + 3


def test_the_compressed_network_can_be_trained() -> None:
    small, _ = ttmodels.compress(Net(), tt_ranks=2)
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    small, _ = ttmodels.compress(Net().to(dtype), tt_ranks=2)
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_subclasses_of_linear_are_left_alone() -> None:
    """Multi-head attention reaches into its projection's weight."""
    model = nn.MultiheadAttention(64, 4, batch_first=True)
    small, report = ttmodels.compress(model, tt_ranks=2)
    assert report.layers == ()
    assert torch.equal(small(X, X, X)[0], model(X, X, X)[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_still_runs(training: bool) -> None:
    """In evaluation torch's fast path reads linear1.weight."""
    model = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    small, _ = ttmodels.compress(model.train(training), tt_ranks=4)
    with torch.no_grad():
        assert small(X).shape == X.shape


def test_an_lstm_with_a_projection_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LSTM(64, 32, proj_size=16))
    small, report = ttmodels.compress(model, tt_ranks=2)
    assert type(small[1]) is nn.LSTM
    assert [layer.name for layer in report.layers] == ["0"]


def test_a_packed_recurrence_runs_as_before() -> None:
    model = nn.GRU(64, 32, batch_first=True)
    small, report = ttmodels.compress(model, tt_ranks=3)
    packed = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([5, 3]), batch_first=True)
    assert len(report.layers) == 1
    assert small(packed)[0].data.shape == model(packed)[0].data.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "tt_ranks, relative_error: expected at least one of them, got neither"),
        ({"relative_error": 1.5}, r"relative_error: expected a number in \[0, 1\), got 1\.5"),
        ({"tt_ranks": 0}, "tt_ranks: expected 4 positive ranks"),
        ({"tt_ranks": (2, 2, 2, 2)}, "tt_ranks: expected 4 positive ranks"),
        ({"tt_ranks": 2, "num_modes": 0}, "num_modes: expected"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=message):
        ttmodels.compress(model, **options)
    assert type(model.first) is nn.Linear

"""Replace the dense layers of somebody's trained network by trains, and say what that saved and cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttmodels.cells import TTCell
from ttmodels.linear import TTLinear
from ttmodels.modes import balanced_modes
from ttmodels.recurrent import TTGRU, TTLSTM, TTRNN, TTRecurrent
from ttmodels.tensor_train import Ranks, TTShape

Wanted = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer. relative_error: ||W - full|| / ||W|| (Frobenius), the worst of its matrices."""

    name: str
    kind: str
    parameters_before: int
    parameters_after: int
    relative_error: float
    shape: TTShape
    """Of its first matrix."""


@dataclass(frozen=True)
class CompressionReport:
    """What `compress` did."""

    layers: tuple[LayerReport, ...]
    parameters_before: int
    """Of the whole network."""
    parameters_after: int

    @property
    def compression(self) -> float:
        return self.parameters_before / max(self.parameters_after, 1)

    def __str__(self) -> str:
        width = max([len("whole network"), *(len(layer.name) for layer in self.layers)])
        lines = [f"{'layer':<{width}}  kind         before       after   times  relative error  ranks"]
        lines += [
            f"{layer.name:<{width}}  {layer.kind:<6} {layer.parameters_before:>12,} {layer.parameters_after:>11,} "
            f"{layer.parameters_before / layer.parameters_after:>7.1f}  {layer.relative_error:>14.3g}  "
            f"{layer.shape.tt_ranks}"
            for layer in self.layers
        ]
        total = f"{self.parameters_before:>12,} {self.parameters_after:>11,} {self.compression:>7.1f}"
        return "\n".join([*lines, f"{'whole network':<{width}}         {total}"])


def compress(
    model: nn.Module,
    *,
    tt_ranks: Ranks | None = None,
    relative_error: float = 0.0,
    num_modes: int = 3,
    wanted: Wanted | None = None,
    inplace: bool = False,
) -> tuple[nn.Module, CompressionReport]:
    """Replace nn.Linear, nn.RNN, nn.GRU and nn.LSTM by trains where that saves weights.

    Args:
        tt_ranks, relative_error: as for `tensor_train.tt_svd`; at least one of them.
        num_modes: cores of each train; sizes are split into factors as equal as can be.
        wanted: called with a layer's name and the layer; all layers without it.
        inplace: change `model` itself, and not a copy.

    Raises:
        ValueError: neither ranks nor an error are given: nothing would be saved.
    """
    if tt_ranks is None and not relative_error:
        raise ValueError("tt_ranks, relative_error: expected at least one of them, got neither")
    if num_modes < 1:
        raise ValueError(f"num_modes: expected at least 1, got {num_modes}")
    before = sum(p.numel() for p in model.parameters())
    if not inplace:
        model = copy.deepcopy(model)
    replaced: dict[nn.Module, nn.Module] = {}
    reports = []
    fixed = _read_by_torch(model)
    for name, layer in list(model.named_modules()):
        if type(layer) not in _KINDS or layer in fixed or (wanted is not None and not wanted(name, layer)):
            continue
        if layer not in replaced:
            train = _train_of(layer, tt_ranks, relative_error, num_modes)
            dense, kept = (sum(p.numel() for p in module.parameters()) for module in (layer, train))
            if kept >= dense:
                continue
            replaced[layer] = train.train(layer.training)
            error, shape = _compare(layer, train)
            reports.append(LayerReport(name, _KINDS[type(layer)], dense, kept, error, shape))
    if model in replaced:
        model = replaced[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() passes over what is there twice
            if child in replaced:
                setattr(parent, name, replaced[child])
    return model, CompressionReport(tuple(reports), before, sum(p.numel() for p in model.parameters()))


def _read_by_torch(model: nn.Module) -> set[nn.Module]:
    """Layers whose weights torch reads itself, past their forward, and LSTMs with a projection: these stay."""
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    projecting = {m for m in model.modules() if isinstance(m, nn.RNNBase) and m.proj_size}
    return {layer for encoder in encoders for layer in encoder.modules()} | projecting


_KINDS: dict[type[nn.Module], str] = {nn.Linear: "linear", nn.RNN: "rnn", nn.GRU: "gru", nn.LSTM: "lstm"}


def _train_of(layer: nn.Module, tt_ranks: Ranks | None, error: float, num_modes: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        modes = balanced_modes(layer.in_features, num_modes), balanced_modes(layer.out_features, num_modes)
        return TTLinear.from_linear(layer, *modes, tt_ranks, relative_error=error)
    assert isinstance(layer, nn.RNNBase)
    modes = balanced_modes(layer.input_size, num_modes), balanced_modes(layer.hidden_size, num_modes)
    if isinstance(layer, nn.GRU):
        return TTGRU.from_gru(layer, *modes, tt_ranks, relative_error=error)
    if isinstance(layer, nn.LSTM):
        return TTLSTM.from_lstm(layer, *modes, tt_ranks, relative_error=error)
    assert isinstance(layer, nn.RNN)
    return TTRNN.from_rnn(layer, *modes, tt_ranks, relative_error=error)


@torch.no_grad()
def _compare(layer: nn.Module, train: nn.Module) -> tuple[float, TTShape]:
    """The worst relative error of a layer's matrices, and the shape of the first train."""
    if isinstance(layer, nn.Linear):
        assert isinstance(train, TTLinear)
        return _relative_error(layer.weight.T, train), train.shape
    assert isinstance(layer, nn.RNNBase)
    assert isinstance(train, TTRecurrent)
    weights = [p.T for name, p in layer.named_parameters() if name.startswith("weight_ih")]
    trains = [cell.projection for cell in train.cells if isinstance(cell, TTCell)]
    return max(_relative_error(w, t) for w, t in zip(weights, trains, strict=True)), trains[0].shape


def _relative_error(weight: Tensor, train: TTLinear) -> float:
    dense = weight.double()
    return float((train.full().double() - dense).norm() / dense.norm().clamp_min(torch.finfo(torch.double).tiny))

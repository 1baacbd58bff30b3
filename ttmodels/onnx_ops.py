"""A cell as ONNX's own RNN, GRU or LSTM op: its attributes and its weights in the op's order of gates.

The ops order their gates otherwise than torch (GRU z, r, h for r, z, n; LSTM i, o, f, c for i, f, g, o). Projected
gates enter through an identity in the place of the input weights, reordered alike. Everything about a formula is always
written: a GRU that leaves linear_before_reset out is taken by ONNX Runtime's CUDA provider with another formula than
the CPU's.

Both readers of a model go through here: the exporter's own graph and plain `torch.onnx.export`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ttmodels import activations
from ttmodels.activations import Activation
from ttmodels.cells import TTCell, TTGRUCell, TTLSTMCell, TTRNNCell

Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]
"""As torch's exporter has them."""

_OPS: dict[type[TTCell], tuple[str, tuple[int, ...]]] = {
    TTRNNCell: ("RNN", (0,)),
    TTGRUCell: ("GRU", (1, 0, 2)),
    TTLSTMCell: ("LSTM", (0, 3, 1, 2)),
}
"""The op, and its gates as places in torch's order."""

_ACTIVATIONS: dict[Activation, tuple[str, list[float], list[float]]] = {
    torch.tanh: ("Tanh", [], []),
    torch.sigmoid: ("Sigmoid", [], []),
    activations.hard_sigmoid: ("HardSigmoid", [0.2], [0.5]),
    torch.relu: ("Relu", [], []),
    activations.linear: ("Affine", [1.0], [0.0]),
    functional.elu: ("Elu", [1.0], []),
    functional.softsign: ("Softsign", [], []),
}
"""The op's name of an activation, its alpha and its beta, where it has them: the op's lists hold those only. Softplus
is left out, since ONNX Runtime's overflows."""


@dataclass(frozen=True)
class NativeOp:
    """Inputs and attributes of the op, for one direction. G gates, H hidden.

    identity [1, G H, G H], weight_hh [1, G H, H], bias [1, 2 G H]: W, R and B of the op. Differentiable, and in the
    cell's own dtype.
    """

    op_type: str
    identity: Tensor
    weight_hh: Tensor
    bias: Tensor
    attributes: Attributes = field(default_factory=dict)

    @property
    def on_cuda(self) -> bool:
        """Whether ONNX Runtime's CUDA provider takes the op: the standard formula and no other."""
        return self.attributes.keys() <= {"hidden_size", "linear_before_reset"} and bool(
            self.attributes.get("linear_before_reset", 1)
        )


def is_known(cell: TTCell) -> bool:
    """Whether the cell is of a class whose formula is known, and no class of somebody's own."""
    return type(cell) in _OPS


def native_op(cell: TTCell) -> NativeOp | None:
    """The cell as a standard op, or None where the ops cannot say its activations.

    A hidden-to-hidden train is merged into its matrix.

    Raises:
        ValueError: a cell of another class, whose formula is not known.
    """
    if not is_known(cell):
        raise ValueError(f"expected a cell of {', '.join(kind.__name__ for kind in _OPS)}, got {type(cell).__name__}")
    op_type, order = _OPS[type(cell)]
    size = cell.hidden_size
    attributes: Attributes = {"hidden_size": size}
    if isinstance(cell, TTGRUCell):
        attributes["linear_before_reset"] = int(cell.reset_after)
    inner, gates = cell.activation, cell.recurrent_activation
    used = {"RNN": [inner], "GRU": [gates, inner], "LSTM": [gates, inner, inner]}[op_type]
    if any(activation not in _ACTIVATIONS for activation in used):
        return None
    if inner is not torch.tanh or (op_type != "RNN" and gates is not torch.sigmoid):
        names, alphas, betas = zip(*(_ACTIVATIONS[activation] for activation in used), strict=True)
        attributes["activations"] = list(names)
        for name, values in (("activation_alpha", alphas), ("activation_beta", betas)):
            if any(values):
                attributes[name] = [number for value in values for number in value]
    weight = cell.hidden_matrix
    bias = weight.new_zeros(weight.shape[0]) if cell.hidden.bias is None else cell.hidden.bias
    places = torch.arange(weight.shape[0], device=weight.device)
    rows = torch.cat([places[gate * size : (gate + 1) * size] for gate in order])
    return NativeOp(
        op_type,
        identity=(rows[:, None] == places).to(weight.dtype)[None],
        weight_hh=weight.index_select(0, rows)[None],
        bias=torch.cat([torch.zeros_like(bias), bias.index_select(0, rows)])[None],
        attributes=attributes,
    )

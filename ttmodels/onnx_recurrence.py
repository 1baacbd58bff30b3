"""The sequential part of a recurrent network, as plain `torch.onnx.export` finds it.

A loop over time would be unrolled, and be wrong at another length. Instead a cell that the standard RNN, GRU or LSTM op
can say becomes that op; any other becomes a Scan of its step: another activation, a cell of somebody's own, float64,
which ONNX Runtime's ops do not take, or dropout in training.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels import onnx_ops
from ttmodels.cells import State, TTCell
from ttmodels.onnx_ops import NativeOp
from ttmodels.presence import Presence


def recur(
    cell: TTCell,
    projected: Tensor,
    state: State,
    present: Presence | None,
    mask: Tensor | None,
    *,
    backwards: bool,
) -> tuple[Tensor, State]:
    """What `ttmodels.recurrent.recur` gives; mask [batch, hidden] is that of recurrent dropout."""
    if mask is None and projected.dtype != torch.float64 and onnx_ops.is_known(cell):
        op = onnx_ops.native_op(cell)
        if op is not None:
            return _native(op, projected, state, present, backwards)
    return _scan(cell, projected, state, present, mask, backwards)


def _native(
    op: NativeOp, projected: Tensor, state: State, present: Presence | None, backwards: bool
) -> tuple[Tensor, State]:
    """In float32: in less, sums over many steps would lose too much, and ONNX Runtime's CPU ops do not take it."""
    lengths, place = None, None
    if present is not None:
        lengths = present.lengths
        if lengths is None:
            projected, lengths, place = _to_the_front(projected, present.mask)
        lengths = lengths.to(torch.int32)
    batch, time, _ = projected.shape
    state_shape = [1, batch, state[0].shape[-1]]
    outputs, *last = torch.onnx.ops.symbolic_multi_out(
        op.op_type,
        [
            projected.transpose(0, 1).float(),
            *(weight.float() for weight in (op.identity, op.weight_hh, op.bias)),
            lengths,
            *(part[None].float() for part in state),
        ],
        op.attributes | {"direction": "reverse" if backwards else "forward"},
        dtypes=[torch.float32] * (1 + len(state)),
        shapes=[[time, *state_shape], *[state_shape] * len(state)],
    )
    outputs = outputs.squeeze(1).transpose(0, 1).to(projected.dtype)
    final = tuple(part.squeeze(0).to(projected.dtype) for part in last)
    if lengths is not None:  # ONNX Runtime leaves 0 as the last state of an empty sequence
        empty = (lengths == 0)[:, None]
        final = tuple(torch.where(empty, old, now) for old, now in zip(state, final, strict=True))
    if present is not None and place is not None:
        place = place[..., None].expand(-1, -1, outputs.shape[-1])
        outputs = outputs.gather(1, place) * present.mask[..., None]
    return outputs, final


def _to_the_front(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [batch, time, ...] with those that are there first, in their order; how many these are; and where each
    step went, [batch, time], any place for one that is not there."""
    time = mask.shape[1]
    position = torch.arange(time, device=mask.device)
    order = torch.where(mask, position, position + time).argsort(1)
    moved = values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))
    return moved, mask.sum(1), (mask.cumsum(1) - 1).clamp_min(0)


def _scan(
    cell: TTCell,
    projected: Tensor,
    state: State,
    present: Presence | None,
    mask: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, State]:
    from torch._higher_order_ops.scan import scan  # torch has no public name for it yet

    cell = _merged(cell)
    there = None if present is None else present.mask.T[..., None]

    def step(state: State, now: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        new = cell.step_where(now[1] if there is not None else None, now[0], state, mask)
        return new, new[0].clone()

    steps = projected.transpose(0, 1).detach()
    first = tuple(part.clone() for part in state)  # a Scan takes no tensor twice
    last, outputs = scan(step, first, (steps,) if there is None else (steps, there), reverse=backwards)
    if there is not None:
        outputs = outputs * there
    return outputs.transpose(0, 1), last


def _merged(cell: TTCell) -> TTCell:
    """The cell with its hidden-to-hidden matrix merged before all steps, and without gradients: those of a Scan would
    be traced too."""
    merged = copy.copy(cell)
    merged._modules = {**cell._modules, "hidden": _Dense(cell)}
    return merged


class _Dense(nn.Module):
    """In the place of the cell's hidden product."""

    def __init__(self, cell: TTCell) -> None:
        super().__init__()
        self.weight = cell.hidden_matrix.detach()
        self.bias = None if cell.hidden.bias is None else cell.hidden.bias.detach()

    def forward(self, h: Tensor) -> Tensor:
        return functional.linear(h, self.weight, self.bias)

"""The recurrences of torch's GRU and LSTM with backward passes written out (back-propagation through time).

A step is a few operations into storage made once; the hidden matrix's gradient is one product over all steps, and not a
sum of as many as there are.

Legend: T time, B batch, H hidden. gates [T, B, gates * H]; states [T + 1, B, H] with the first state at 0; `present` is
bool [T, B, 1] or None: an absent step hands the state on. Outputs are not masked.

Reference: Werbos, "Backpropagation through time", Proc. IEEE 78(10), 1990.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttmodels.products import add_product, product


def _start(first: Tensor, time: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Storage for all states, and its slices."""
    states = first.new_empty(time + 1, *first.shape)
    states[0] = first
    return states, states.unbind(0)


def _slices(gates: Tensor, size: int, *bounds: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    """For each pair of gate numbers, those gates at every step."""
    return [gates[..., a * size : b * size].unbind(0) for a, b in bounds]


def _hidden_gradients(d_hidden: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Of the weight [gates * H, H] and the bias, from those of h @ weight.T + bias in all steps."""
    flat = d_hidden.flatten(0, 1)
    return product(flat.T, states[:-1].flatten(0, 1)), flat.sum(0)


class GRUOverTime(torch.autograd.Function):
    """r, z = sigmoid(gates + U h + c), n = tanh(gates_n + r * (U_n h + c_n)), h' = n + z (h - n)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h0: Tensor, weight: Tensor, bias: Tensor, present: Tensor | None) -> Tensor:
        time, size = gates.shape[0], h0.shape[1]
        hidden = torch.empty_like(gates, memory_format=torch.contiguous_format)
        torch.add(gates[..., : 2 * size], bias[: 2 * size], out=hidden[..., : 2 * size])
        hidden[..., 2 * size :] = bias[2 * size :]
        candidates = torch.empty_like(hidden[..., :size])
        states, h = _start(h0, time)
        everything, rz, r, z, hn = _slices(hidden, size, (0, 3), (0, 2), (0, 1), (1, 2), (2, 3))
        gates_n, n, transposed = gates[..., 2 * size :].unbind(0), candidates.unbind(0), weight.T
        for t in range(time):
            add_product(everything[t], h[t], transposed, out=everything[t])
            rz[t].sigmoid_()
            torch.addcmul(gates_n[t], r[t], hn[t], out=n[t]).tanh_()
            torch.lerp(n[t], h[t], z[t], out=h[t + 1])
            if present is not None:
                torch.where(present[t], h[t + 1], h[t], out=h[t + 1])
        ctx.save_for_backward(hidden, candidates, states, weight, present)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        hidden, n, states, weight, present = ctx.saved_tensors
        time, _, size = n.shape
        r, z, hn = hidden.split(size, -1)
        # d hidden is a slope times dh; the slopes are known for all steps at once.
        slope = torch.empty_like(hidden)
        slope_r, slope_z, slope_n = slope.split(size, -1)
        to_n = (1 - z) * (1 - n * n)
        if present is not None:
            to_n = to_n * present
        torch.mul(to_n, r, out=slope_n)
        torch.mul(slope_n, (1 - r) * hn, out=slope_r)
        torch.mul(states[:-1] - n, z - z * z, out=slope_z)
        kept = z
        if present is not None:
            slope_z.mul_(present)
            kept = torch.where(present, z, 1)
        d_h = torch.empty_like(n)
        d_h_at, kept_at, d_out = d_h.unbind(0), kept.unbind(0), d_states.unbind(0)
        slopes, d_hidden = slope.unflatten(-1, (3, size)).unbind(0), slope.unbind(0)
        now = d_out[time]
        for t in reversed(range(time)):
            d_h_at[t].copy_(now)
            slopes[t].mul_(now[:, None])
            now = add_product(torch.addcmul(d_out[t], now, kept_at[t]), d_hidden[t], weight)
        d_weight, d_bias = _hidden_gradients(slope, states)
        d_gates = torch.cat((slope[..., : 2 * size], d_h.mul_(to_n)), -1)
        return d_gates, now, d_weight, d_bias, None


class LSTMOverTime(torch.autograd.Function):
    """i, f, o = sigmoid(..), g = tanh(..); c' = f c + i g; h' = o tanh(c')."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h0: Tensor, c0: Tensor, weight: Tensor, bias: Tensor, present: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        time, size = gates.shape[0], h0.shape[1]
        made = torch.add(gates, bias)
        squashed = torch.empty_like(made[..., :size])
        (states, h), (cells, c) = _start(h0, time), _start(c0, time)
        everything, i_f, i, f, g, o = _slices(made, size, (0, 4), (0, 2), (0, 1), (1, 2), (2, 3), (3, 4))
        transposed, tanh_c = weight.T, squashed.unbind(0)
        for t in range(time):
            add_product(everything[t], h[t], transposed, out=everything[t])
            i_f[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=tanh_c[t])
            torch.mul(o[t], tanh_c[t], out=h[t + 1])
            if present is not None:
                torch.where(present[t], h[t + 1], h[t], out=h[t + 1])
                torch.where(present[t], c[t + 1], c[t], out=c[t + 1])
        ctx.save_for_backward(made, squashed, states, cells, weight, present)
        return states, cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor, d_cells: Tensor) -> tuple[Tensor | None, ...]:
        made, tanh_c, states, cells, weight, present = ctx.saved_tensors
        time, _, size = tanh_c.shape
        i, f, g, o = made.split(size, -1)
        slope = torch.empty_like(made)
        slope_i, slope_f, slope_g, slope_o = slope.split(size, -1)
        torch.mul(g, i - i * i, out=slope_i)
        torch.mul(cells[:-1], f - f * f, out=slope_f)
        torch.mul(i, 1 - g * g, out=slope_g)
        torch.mul(tanh_c, o - o * o, out=slope_o)
        to_c, kept = o * (1 - tanh_c * tanh_c), f
        if present is not None:
            slope.mul_(present)
            to_c.mul_(present)
            kept = torch.where(present, f, 1)
        kept_at, to_c_at, d_made = kept.unbind(0), to_c.unbind(0), slope.unbind(0)
        slopes_c, slopes_o = slope[..., : 3 * size].unflatten(-1, (3, size)).unbind(0), slope_o.unbind(0)
        d_h, d_c = d_states.unbind(0), d_cells.unbind(0)
        now_h, now_c = d_h[time], d_c[time]
        for t in reversed(range(time)):
            all_c = torch.addcmul(now_c, now_h, to_c_at[t])
            slopes_c[t].mul_(all_c[:, None])
            slopes_o[t].mul_(now_h)
            now_c = torch.addcmul(d_c[t], all_c, kept_at[t])
            passed = d_h[t] if present is None else torch.addcmul(d_h[t], now_h, (~present[t]).to(now_h.dtype))
            now_h = add_product(passed, d_made[t], weight)
        d_weight, d_bias = _hidden_gradients(slope, states)
        return slope, now_h, now_c, d_weight, d_bias, None

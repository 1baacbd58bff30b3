"""Recurrent networks whose input-to-hidden matrix is a Tensor-Train.

All gates share one train: the first output mode is multiplied by their number, so the gates lie behind one another in
the projection. All frames of all clips are projected at once; only the hidden-to-hidden step, which is dense, is
sequential.

Reference: Yang, Krompass, Tresp, "Tensor-Train recurrent neural networks for video classification", ICML 2017,
section 3.2 (the TT-RNN), 3.3 (TT-GRU and TT-LSTM with one train for all gates).
Gate orders are torch's: GRU r, z, n; LSTM i, f, g, o.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ttmodels.contraction import Plan
from ttmodels.linear import TTLinear

State = tuple[Tensor, ...]
"""(h,) or, for an LSTM, (h, c); each [batch, hidden]."""


class TTRecurrent(nn.Module, ABC):
    """What TTRNN, TTGRU and TTLSTM share: one layer, one direction, batch first.

    Args:
        input_modes: modes of the input's size.
        output_modes: modes of the hidden size, as many.
        tt_ranks: as for `TTLinear`.
        bias: whether the projection and the step have biases.

    Shape:
        x [batch, time, prod input_modes], lengths [batch] or None -> outputs [batch, time, hidden] and the last state,
        in torch's form: h [1, batch, hidden], for an LSTM (h, c). Past a clip's length the outputs are 0 and the state
        is the one at its end.
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int] = 1
    cell: ClassVar[str]

    def __init__(
        self,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: int | Sequence[int],
        *,
        bias: bool = True,
        plan: Plan | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = math.prod(output_modes)
        gate_modes = (output_modes[0] * self.num_gates, *output_modes[1:])
        self.output_modes = tuple(output_modes)
        self.projection = TTLinear(input_modes, gate_modes, tt_ranks, bias=bias, plan=plan)
        self.weight_hh = nn.Parameter(torch.empty(self.num_gates * self.hidden_size, self.hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(self.num_gates * self.hidden_size)) if bias else None
        self.reset_parameters()

    @property
    def input_size(self) -> int:
        return self.projection.in_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Input weights of Glorot's variance for one gate, orthogonal hidden-to-hidden blocks, biases 0."""
        self.projection.reset_parameters(math.sqrt(2 / (self.input_size + self.hidden_size)))
        for block in self.weight_hh.view(self.num_gates, self.hidden_size, self.hidden_size):
            nn.init.orthogonal_(block)
        if self.bias_hh is not None:
            self.bias_hh.zero_()

    @abstractmethod
    def step(self, projected: Tensor, state: State) -> State:
        """One step of time from projected gates [batch, num_gates * hidden]; the new state, h first."""

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: Tensor | State | None = None
    ) -> tuple[Tensor, Tensor | State]:
        projected = self.projection(x)
        return self.recur(projected, lengths, state)

    def recur(
        self, projected: Tensor, lengths: Tensor | None = None, state: Tensor | State | None = None
    ) -> tuple[Tensor, Tensor | State]:
        """The sequential part. projected [batch, time, num_gates * hidden] -> as `forward`."""
        time = projected.shape[1]
        now = self._initial(projected, state)
        keep = None
        if lengths is not None:
            steps = torch.arange(time, device=projected.device)
            keep = (steps[None, :] < lengths.to(projected.device)[:, None])[..., None]
        outputs = []
        for t, gates in enumerate(projected.unbind(1)):
            new = self.step(gates, now)
            if keep is None:
                now = new
                outputs.append(now[0])
            else:
                now = tuple(torch.where(keep[:, t], n, old) for n, old in zip(new, now, strict=True))
                outputs.append(now[0] * keep[:, t])
        last = tuple(part[None] for part in now)
        return torch.stack(outputs, 1), last if self.num_states > 1 else last[0]

    def _initial(self, projected: Tensor, state: Tensor | State | None) -> State:
        shape = (projected.shape[0], self.hidden_size)
        if state is None:
            return tuple(projected.new_zeros(shape) for _ in range(self.num_states))
        parts = (state,) if isinstance(state, Tensor) else tuple(state)
        if len(parts) != self.num_states or any(part.shape != (1, *shape) for part in parts):
            found = [list(part.shape) for part in parts]
            raise ValueError(f"expected {self.num_states} state(s) of shape {[1, *shape]}, got {found}")
        return tuple(part[0] for part in parts)

    def _hidden_gates(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.weight_hh, self.bias_hh)


class TTRNN(TTRecurrent):
    """h' = tanh(W x + b + U h + c)."""

    num_gates = 1
    cell = "rnn"

    def step(self, projected: Tensor, state: State) -> State:
        return (torch.tanh(projected + self._hidden_gates(state[0])),)


class TTGRU(TTRecurrent):
    """The GRU with its reset gate after the hidden product, as torch and cuDNN have it.

    r = s(W_r x + U_r h), z = s(W_z x + U_z h), n = tanh(W_n x + r * (U_n h + c_n)), h' = (1 - z) n + z h.
    """

    num_gates = 3
    cell = "gru"

    def step(self, projected: Tensor, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = projected.chunk(3, -1)
        h_r, h_z, h_n = self._hidden_gates(h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (torch.lerp(n, h, z),)


class TTLSTM(TTRecurrent):
    """i, f, o = s(..), g = tanh(..); c' = f c + i g; h' = o tanh(c'). The forget gate's bias starts at 1.

    Reference for the bias: Jozefowicz, Zaremba, Sutskever, ICML 2015.
    """

    num_gates = 4
    num_states = 2
    cell = "lstm"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias_hh is not None:
            self.bias_hh[self.hidden_size : 2 * self.hidden_size] = 1

    def step(self, projected: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (projected + self._hidden_gates(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


CELLS: dict[str, type[TTRecurrent]] = {kind.cell: kind for kind in (TTRNN, TTGRU, TTLSTM)}

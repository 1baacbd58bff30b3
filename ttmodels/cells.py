"""One step of a recurrent network whose input-to-hidden matrix is a Tensor-Train.

All gates share one train: the first output mode is multiplied by their number, so the gates lie behind one another in
the projection. The hidden-to-hidden matrix is dense, or a train too. Gate orders are torch's: GRU r, z, n; LSTM i, f,
g, o.

Reference: Yang, Krompass, Tresp, "Tensor-Train recurrent neural networks for video classification", ICML 2017, section
3.2 (TT-RNN) and 3.3 (TT-GRU and TT-LSTM with one train for all gates).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels import initialisers
from ttmodels.activations import Activation, find_activation
from ttmodels.bptt import GRUOverTime, LSTMOverTime
from ttmodels.linear import TTLinear
from ttmodels.products import no_autocast
from ttmodels.tensor_train import Ranks, TTShape, check_mode_pair

State = tuple[Tensor, ...]
"""(h,) or, for an LSTM, (h, c); each [batch, hidden]."""

_SQUARE: dict[str, Callable[[Tensor], object]] = {
    "orthogonal": nn.init.orthogonal_,
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
    "identity": nn.init.eye_,
}


class TTCell(nn.Module, ABC):
    """What TTRNNCell, TTGRUCell and TTLSTMCell share.

    Args:
        input_modes, output_modes: modes of the input's and of the hidden size, as many.
        tt_ranks: of the input-to-hidden train, as for `TTLinear`.
        bias: whether the projection and the hidden product have biases, as torch's cells.
        activation: of the new state; a name of `ttmodels.activations` or a callable.
        recurrent_activation: of the gates, alike; `hard_sigmoid` is Keras'.
        recurrent_initialiser: orthogonal (without it), glorot_normal, glorot_uniform or identity, block by block, or a
            callable that fills a block [hidden, hidden] in place; beside recurrent_ranks a `kernel_initialiser`,
            glorot_normal without it.
        recurrent_ranks: makes the hidden-to-hidden matrix a train of these ranks too.
        recurrent_dropout: share of the hidden units that the hidden product does not see, one mask a sequence.
        projection: further arguments of the input-to-hidden `TTLinear`: kernel_initialiser, kernel_penalty, plan, ...

    Call: cell(x [batch, input], state or None) -> state; h is [batch, hidden], an LSTM's state (h, c).
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int] = 1
    kind: ClassVar[str]

    def __init__(
        self,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        bias: bool = True,
        activation: str | Activation = "tanh",
        recurrent_activation: str | Activation = "sigmoid",
        recurrent_initialiser: str | Callable[..., Any] | None = None,
        recurrent_ranks: Ranks | None = None,
        recurrent_dropout: float = 0.0,
        **projection: Any,
    ) -> None:
        super().__init__()
        if not 0 <= recurrent_dropout < 1:
            raise ValueError(f"recurrent_dropout: expected a number in [0, 1), got {recurrent_dropout}")
        known = _SQUARE if recurrent_ranks is None else initialisers.NAMES
        if isinstance(recurrent_initialiser, str) and recurrent_initialiser not in known:
            names = ", ".join(known)
            raise ValueError(
                f"recurrent_initialiser: expected one of {names} or a callable, got {recurrent_initialiser!r}"
            )
        check_mode_pair(tuple(input_modes), tuple(output_modes))
        self.output_modes = tuple(output_modes)
        self.hidden_size = math.prod(output_modes)
        self.activation = find_activation(activation, "activation")
        self.recurrent_activation = find_activation(recurrent_activation, "recurrent_activation")
        self.recurrent_initialiser = recurrent_initialiser
        self.recurrent_dropout = recurrent_dropout
        gate_modes = (output_modes[0] * self.num_gates, *output_modes[1:])
        self.projection = TTLinear(input_modes, gate_modes, tt_ranks, bias=bias, num_gates=self.num_gates, **projection)
        place = {name: projection[name] for name in ("device", "dtype") if name in projection}
        self.hidden: nn.Linear | TTLinear
        if recurrent_ranks is None:
            self.hidden = nn.Linear(self.hidden_size, self.num_gates * self.hidden_size, bias=bias, **place)
        else:
            TTShape.make(output_modes, gate_modes, recurrent_ranks, argument="recurrent_ranks")
            self.hidden = TTLinear(
                output_modes,
                gate_modes,
                recurrent_ranks,
                bias=bias,
                kernel_initialiser=recurrent_initialiser or "glorot_normal",
                num_gates=self.num_gates,
                **place,
            )
        self.reset_parameters()

    @property
    def input_size(self) -> int:
        return self.projection.in_features

    @property
    def hidden_matrix(self) -> Tensor:
        """The hidden-to-hidden matrix [num_gates * hidden, hidden], merged where it is a train."""
        return self.hidden.full().T if isinstance(self.hidden, TTLinear) else self.hidden.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise anew: the projection by its own initialiser, hidden blocks by theirs, biases 0."""
        self.projection.reset_parameters()
        if isinstance(self.hidden, TTLinear):
            self.hidden.reset_parameters()
        else:
            fill = self.recurrent_initialiser or "orthogonal"
            for block in self.hidden.weight.view(self.num_gates, self.hidden_size, self.hidden_size):
                filled = torch.empty_like(block, dtype=torch.float32)  # torch factorises no half precision
                (_SQUARE[fill] if isinstance(fill, str) else fill)(filled)
                block.copy_(filled)
            if self.hidden.bias is not None:
                self.hidden.bias.zero_()

    def recurrent_mask(self, projected: Tensor) -> Tensor | None:
        """The units that the hidden product sees in a sequence, scaled; None in evaluation.

        Shape: projected [batch, ..., gates] -> [batch, hidden].
        """
        if not (self.training and self.recurrent_dropout):
            return None
        batch = () if projected.ndim == 1 else projected.shape[:1]
        return functional.dropout(projected.new_ones(*batch, self.hidden_size), self.recurrent_dropout)

    @property
    def fused(self) -> bool:
        """Whether `over_time` can take all steps: the standard formula, a dense hidden matrix, a bias."""
        return (
            type(self).over_time is not TTCell.over_time
            and isinstance(self.hidden, nn.Linear)
            and self.hidden.bias is not None
            and self.activation is torch.tanh
            and self.recurrent_activation is torch.sigmoid
        )

    def over_time(self, projected: Tensor, state: State, present: Tensor | None) -> tuple[Tensor, State]:
        """All steps as one node of autograd, where `fused`; projected [time, batch, gates], present bool
        [time, batch, 1] or None -> h [time, batch, hidden] and the last state."""
        raise NotImplementedError

    @abstractmethod
    def step(self, projected: Tensor, state: State, mask: Tensor | None = None) -> State:
        """The new state, h first, from projected gates [batch, num_gates * hidden]."""

    def step_where(self, there: Tensor | None, projected: Tensor, state: State, mask: Tensor | None = None) -> State:
        """`step` where bool there [batch, 1] says so, and the old state elsewhere."""
        new = self.step(projected, state, mask)
        if there is None:
            return new
        return tuple(torch.where(there, now, old) for now, old in zip(new, state, strict=True))

    def initial_state(self, projected: Tensor) -> State:
        shape = (*projected.shape[:-1], self.hidden_size)
        return tuple(projected.new_zeros(shape) for _ in range(self.num_states))

    def prepare(self, projected: Tensor, state: State, argument: str) -> tuple[Tensor, State]:
        """Projected gates and state in the hidden product's own precision: a recurrence is no place for less.

        Raises:
            ValueError: a state of another dtype or device; calls it `argument`.
        """
        weight = self.hidden.cores[0] if isinstance(self.hidden, TTLinear) else self.hidden.weight
        for part in state:
            if part.device != projected.device:
                raise ValueError(f"{argument}: expected {projected.device}, where the input is, got {part.device}")
            if part.dtype not in (weight.dtype, projected.dtype):
                raise ValueError(f"{argument}: expected {weight.dtype}, as the weights are, got {part.dtype}")
        return projected.to(weight.dtype), tuple(part.to(weight.dtype) for part in state)

    def forward(self, x: Tensor, state: Tensor | State | None = None, mask: Tensor | None = None) -> Tensor | State:
        """mask: from `recurrent_mask`, to have one for a whole sequence; each call draws its own without it."""
        projected = self.projection(x)
        if state is None:
            now = self.initial_state(projected)
        else:
            now = (state,) if isinstance(state, Tensor) else tuple(state)
        expected = (*projected.shape[:-1], self.hidden_size)
        if len(now) != self.num_states or any(part.shape != expected for part in now):
            raise ValueError(
                f"state: expected {self.num_states} of shape {list(expected)}, got {[list(part.shape) for part in now]}"
            )
        with no_autocast(projected):
            projected, now = self.prepare(projected, now, "state")
            new = self.step(projected, now, self.recurrent_mask(projected) if mask is None else mask)
        return new if self.num_states > 1 else new[0]


class TTRNNCell(TTCell):
    """h' = activation(W x + b + U h + c)."""

    num_gates = 1
    kind = "rnn"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "recurrent_activation" in options:
            raise ValueError("recurrent_activation: expected none, a TTRNN has no gates")
        super().__init__(*arguments, **options)

    def step(self, projected: Tensor, state: State, mask: Tensor | None = None) -> State:
        h = state[0] if mask is None else state[0] * mask
        return (self.activation(projected + self.hidden(h)),)


class TTGRUCell(TTCell):
    """A GRU, its reset gate after the hidden product (torch, cuDNN) or before it (Cho et al. 2014, Keras' older form).

    r = s(W_r x + U_r h), z = s(W_z x + U_z h), n = a(W_n x + r * (U_n h)) or a(W_n x + U_n (r * h)),
    h' = (1 - z) n + z h.
    """

    num_gates = 3
    kind = "gru"

    def __init__(self, *arguments: Any, reset_after: bool = True, **options: Any) -> None:
        self.reset_after = reset_after
        super().__init__(*arguments, **options)

    def step(self, projected: Tensor, state: State, mask: Tensor | None = None) -> State:
        size = self.hidden_size
        h = state[0]
        seen = h if mask is None else h * mask
        hidden = self.hidden(seen)
        gates = self.recurrent_activation(projected[..., : 2 * size] + hidden[..., : 2 * size])
        r, z = gates[..., :size], gates[..., size:]
        if self.reset_after:
            n = self.activation(projected[..., 2 * size :] + r * hidden[..., 2 * size :])
        else:
            n = self.activation(projected[..., 2 * size :] + self._candidate(r * seen))
        return (torch.lerp(n, h, z),)

    @property
    def fused(self) -> bool:
        return super().fused and self.reset_after

    def over_time(self, projected: Tensor, state: State, present: Tensor | None) -> tuple[Tensor, State]:
        states = GRUOverTime.apply(  # type: ignore[no-untyped-call]
            projected, state[0], self.hidden.weight, self.hidden.bias, present
        )
        return states[1:], (states[-1],)

    def _candidate(self, h: Tensor) -> Tensor:
        """The last third of the hidden product."""
        first = 2 * self.hidden_size
        if isinstance(self.hidden, TTLinear):
            return torch.as_tensor(self.hidden(h))[..., first:]
        bias = self.hidden.bias
        return functional.linear(h, self.hidden.weight[first:], None if bias is None else bias[first:])


class TTLSTMCell(TTCell):
    """i, f, o = s(..), g = a(..); c' = f c + i g; h' = o a(c').

    unit_forget_bias starts the forget gate's bias at 1 (Jozefowicz, Zaremba, Sutskever, ICML 2015).
    """

    num_gates = 4
    num_states = 2
    kind = "lstm"

    def __init__(self, *arguments: Any, unit_forget_bias: bool = True, **options: Any) -> None:
        self.unit_forget_bias = unit_forget_bias
        super().__init__(*arguments, **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.unit_forget_bias and self.hidden.bias is not None:
            self.hidden.bias[self.hidden_size : 2 * self.hidden_size] = 1

    def step(self, projected: Tensor, state: State, mask: Tensor | None = None) -> State:
        h, c = state
        size = self.hidden_size
        gates = projected + self.hidden(h if mask is None else h * mask)
        i_f = self.recurrent_activation(gates[..., : 2 * size])
        g = self.activation(gates[..., 2 * size : 3 * size])
        o = self.recurrent_activation(gates[..., 3 * size :])
        c = i_f[..., size:] * c + i_f[..., :size] * g
        return o * self.activation(c), c

    def over_time(self, projected: Tensor, state: State, present: Tensor | None) -> tuple[Tensor, State]:
        h, c = state
        states, cells = LSTMOverTime.apply(  # type: ignore[no-untyped-call]
            projected, h, c, self.hidden.weight, self.hidden.bias, present
        )
        return states[1:], (states[-1], cells[-1])

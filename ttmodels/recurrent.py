"""TTRNN, TTGRU and TTLSTM: they can stand where torch's nn.RNN, nn.GRU and nn.LSTM stood.

All frames of all clips are projected at once; only the hidden-to-hidden step is sequential.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ttmodels import onnx_recurrence, tensor_train
from ttmodels.cells import State, TTCell, TTGRUCell, TTLSTMCell, TTRNNCell
from ttmodels.linear import TTLinear
from ttmodels.linear import penalty as penalty_of
from ttmodels.presence import Presence
from ttmodels.products import no_autocast, plain_autograd
from ttmodels.tensor_train import Ranks


class TTRecurrent(nn.Module):
    """What TTRNN, TTGRU and TTLSTM share.

    Args:
        input_modes, output_modes, tt_ranks: of the first layer; a further layer reads the hidden states of the one
            before it through a train of the same ranks, with the output modes as its input modes.
        num_layers, bias, batch_first, dropout, bidirectional: as torch's. Dropout is between layers.
        return_sequences: False gives the output at each sequence's end only, [batch, hidden * directions].
        go_backwards: read from the end; outputs come in the order of reading, as Keras has it.
        stateful: start from where the last call ended, until `reset_state()`; gradients end at the calls' border.
        options: of the cells: activation, recurrent_activation, recurrent_dropout, recurrent_ranks, reset_after,
            unit_forget_bias, kernel_initialiser, ...

    Shape:
        input [time, batch, input], [batch, time, input] with batch_first, [time, input], or a PackedSequence; hx as
        torch's: h [num_layers * directions, batch, hidden], for an LSTM (h, c). Returns (output, state), alike.
        lengths [batch] or mask bool [batch, time] (True: present): absent steps leave the state as it was and have
        the output 0.

    Raises:
        ValueError: an argument that does not fit; names it.

    Reference: see `ttmodels.cells`.
    """

    cell_class: ClassVar[type[TTCell]]

    def __init__(
        self,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        return_sequences: bool = True,
        go_backwards: bool = False,
        stateful: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        if dropout and num_layers == 1:
            raise ValueError("dropout: is between layers, expected num_layers of at least 2, got 1")
        if go_backwards and bidirectional:
            raise ValueError("go_backwards: both directions are read already where bidirectional is set")
        self.num_layers, self.num_directions = num_layers, 1 + bidirectional
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self.return_sequences, self.go_backwards, self.stateful = return_sequences, go_backwards, stateful
        tensor_train.check_mode_pair(tuple(input_modes), tuple(output_modes))
        later_modes = (output_modes[0] * self.num_directions, *output_modes[1:])
        self.cells = nn.ModuleList(
            self.cell_class(input_modes if layer == 0 else later_modes, output_modes, tt_ranks, bias=bias, **options)
            for layer in range(num_layers)
            for _ in range(self.num_directions)
        )
        self._carried: tuple[Tensor, ...] | None = None

    @property
    def hidden_size(self) -> int:
        return self._cell(0).hidden_size

    @property
    def input_size(self) -> int:
        return self._cell(0).input_size

    def _cell(self, index: int) -> TTCell:
        cell = self.cells[index]
        assert isinstance(cell, TTCell)
        return cell

    def reset_parameters(self) -> None:
        for index in range(len(self.cells)):
            self._cell(index).reset_parameters()

    def flatten_parameters(self) -> None:
        """Nothing to do: there is no other order of the weights for cuDNN. Code around torch's networks calls it."""

    def reset_state(self) -> None:
        """Forget what a stateful network carries from call to call."""
        self._carried = None

    def penalty(self) -> Tensor:
        """The sum of the penalties of all its trains."""
        return penalty_of(self)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor | State]:
        if isinstance(input, PackedSequence):
            if lengths is not None or mask is not None:
                raise ValueError("lengths, mask: expected neither beside a PackedSequence, which has its own")
            if self.go_backwards:
                raise ValueError("input: expected padded sequences with go_backwards, got a PackedSequence")
            return self._packed(input, hx)
        if input.ndim not in (2, 3):
            raise ValueError(f"input: expected [time, input] or a batch of it, got {list(input.shape)}")
        batched = input.ndim == 3
        x = input if batched and self.batch_first else input.transpose(0, 1) if batched else input[None]
        if hx is not None and not batched:
            hx = hx[:, None] if isinstance(hx, Tensor) else tuple(part[:, None] for part in hx)
        outputs, state = self._run(self._projected(0, x), hx, Presence.of(x, lengths, mask))
        if not batched:
            outputs, state = outputs[0], tuple(part[:, 0] for part in state)
        elif self.return_sequences and not self.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs, state if len(state) > 1 else state[0]

    def _packed(
        self, packed: PackedSequence, hx: Tensor | State | None
    ) -> tuple[Tensor | PackedSequence, Tensor | State]:
        """Only what is there is projected; the padding is made behind the projection, where it is small."""
        projected, lengths = [], None
        for gates in self._projected(0, packed.data):
            padded, lengths = pad_packed_sequence(_with_data(packed, gates), batch_first=True)
            projected.append(padded)
        assert lengths is not None
        present = Presence.first(lengths.to(projected[0].device), projected[0].shape[1])
        outputs, state = self._run(projected, hx, present)
        returned = state if len(state) > 1 else state[0]
        if not self.return_sequences:
            return outputs, returned
        order = packed.sorted_indices
        if order is not None:
            outputs, lengths = outputs[order], lengths[order.cpu()]
        return _with_data(packed, pack_padded_sequence(outputs, lengths, batch_first=True).data), returned

    def _projected(self, layer: int, x: Tensor) -> list[Tensor]:
        """A layer's gates from what it reads, one [..., gates] a direction."""
        first = layer * self.num_directions
        return [self._cell(index).projection(x) for index in range(first, first + self.num_directions)]

    def _run(
        self, projected: list[Tensor], hx: Tensor | State | None, present: Presence | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Layer after layer; outputs [batch, time, ...] and the states, each [layers * directions, batch, hidden]."""
        first = self._initial(projected[0], hx)
        if self.go_backwards:
            projected, present = [gates.flip(1) for gates in projected], None if present is None else present.flip()
        finals: list[State] = []
        outputs = projected[0]
        for layer in range(self.num_layers):
            if layer:
                if self.dropout:
                    outputs = functional.dropout(outputs, self.dropout, self.training)
                projected = self._projected(layer, outputs)
            parts = []
            for direction, gates in enumerate(projected):
                index = layer * self.num_directions + direction
                seen, final = recur(self._cell(index), gates, first[index], present, backwards=direction == 1)
                parts.append(seen)
                finals.append(final)
            outputs = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        states = tuple(torch.stack(part) for part in zip(*finals, strict=True))
        if self._carries:
            self._carried = tuple(part.detach() for part in states)
        if not self.return_sequences:
            outputs = torch.cat([final[0] for final in finals[-self.num_directions :]], -1)
        return outputs, states

    def _initial(self, projected: Tensor, hx: Tensor | State | None) -> list[State]:
        """Each cell's first state."""
        cell = self._cell(0)
        shape = (len(self.cells), projected.shape[0], self.hidden_size)
        if hx is None and self._carries and self._carried is not None:
            hx = tuple(part.to(projected) for part in self._carried)
            if hx[0].shape != shape:
                raise ValueError(
                    f"a stateful network carries a batch of {hx[0].shape[1]}, got {shape[1]}; call reset_state() first"
                )
        if hx is None:
            return [(projected.new_zeros(shape[1:]),) * cell.num_states] * len(self.cells)
        parts = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if len(parts) != cell.num_states or any(part.shape != shape for part in parts):
            raise ValueError(
                f"hx: expected {cell.num_states} state(s) of shape {list(shape)}, got {[list(p.shape) for p in parts]}"
            )
        return [tuple(part[index] for part in parts) for index in range(len(self.cells))]

    @property
    def _carries(self) -> bool:
        """Whether its state goes on from call to call; in an exported graph it is an input and an output instead."""
        return self.stateful and not torch.onnx.is_in_onnx_export()

    # ---- from torch's own

    @classmethod
    @torch.no_grad()
    def _from_torch(
        cls,
        rnn: nn.RNNBase,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None,
        relative_error: float,
        **options: Any,
    ) -> Self:
        """Each input-to-hidden matrix by TT-SVD; hidden-to-hidden matrices and biases as they are."""
        if rnn.proj_size:
            raise ValueError(f"expected an LSTM without a projection, got proj_size={rnn.proj_size}")
        directions = 1 + rnn.bidirectional
        network = cls(
            input_modes,
            output_modes,
            tt_ranks,
            num_layers=rnn.num_layers,
            bias=rnn.bias,
            batch_first=rnn.batch_first,
            dropout=rnn.dropout if rnn.num_layers > 1 else 0.0,
            bidirectional=rnn.bidirectional,
            **options,
        ).to(rnn.weight_hh_l0)  # type: ignore[arg-type]
        if (network.input_size, network.hidden_size) != (rnn.input_size, rnn.hidden_size):
            raise ValueError(
                f"input_modes, output_modes: expected to multiply to {rnn.input_size} and {rnn.hidden_size}, "
                f"got {tuple(input_modes)} and {tuple(output_modes)}"
            )
        for index in range(len(network.cells)):
            cell = network._cell(index)
            suffix = f"_l{index // directions}{'_reverse' if index % directions else ''}"
            weight = getattr(rnn, f"weight_ih{suffix}")
            modes = cell.projection.shape
            cores = tensor_train.tt_svd(weight.T, modes.input_modes, modes.output_modes, tt_ranks, relative_error)
            cell.projection = TTLinear.from_cores(cores, getattr(rnn, f"bias_ih{suffix}") if rnn.bias else None)
            cell.projection.num_gates = cell.num_gates
            cell.projection.cores.requires_grad_(weight.requires_grad)
            assert isinstance(cell.hidden, nn.Linear)
            for mine, name in (
                (cell.hidden.weight, "weight_hh"),
                (cell.hidden.bias, "bias_hh"),
                (cell.projection.bias, "bias_ih"),
            ):
                if mine is not None:
                    theirs = getattr(rnn, f"{name}{suffix}")
                    mine.copy_(theirs)
                    mine.requires_grad_(theirs.requires_grad)
        return network.train(rnn.training)


def recur(
    cell: TTCell, projected: Tensor, state: State, present: Presence | None, *, backwards: bool = False
) -> tuple[Tensor, State]:
    """The sequential part of one layer in one direction.

    Shape: projected [batch, time, gates] -> h [batch, time, hidden], 0 where absent, in the order of the input also
    where it is read backwards, and the last state.
    """
    with no_autocast(projected):
        projected, state = cell.prepare(projected, state, "hx")
        mask = cell.recurrent_mask(projected)
        if torch.onnx.is_in_onnx_export():
            if not torch.compiler.is_compiling():
                raise ValueError("torch.onnx.export: expected dynamo=True, without which time would be unrolled")
            return onnx_recurrence.recur(cell, projected, state, present, mask, backwards=backwards)
        there = None if present is None else present.mask.T[..., None]
        steps = projected.transpose(0, 1)
        if backwards:
            steps, there = steps.flip(0), None if there is None else there.flip(0)
        if mask is None and cell.fused and steps.numel() and not plain_autograd(steps):
            outputs, state = cell.over_time(steps, state, there)
        else:
            outputs, state = _loop(cell, steps.contiguous(), state, there, mask)
        if there is not None:
            outputs = outputs * there
    outputs = outputs.transpose(0, 1)
    return outputs.flip(1) if backwards else outputs, state


def _loop(
    cell: TTCell, projected: Tensor, state: State, there: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, State]:
    """Step by step; projected [time, batch, gates] -> h [time, batch, hidden] and the last state."""
    outputs = []
    for t, gates in enumerate(projected.unbind(0)):
        state = cell.step_where(None if there is None else there[t], gates, state, mask)
        outputs.append(state[0])
    if not outputs:
        return projected.new_zeros(0, projected.shape[1], cell.hidden_size), state
    return torch.stack(outputs), state


def _with_data(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


class TTRNN(TTRecurrent):
    """`TTRecurrent` over TTRNNCell; in nn.RNN's place."""

    cell_class = TTRNNCell

    @classmethod
    def from_rnn(
        cls,
        rnn: nn.RNN,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        relative_error: float = 0.0,
    ) -> Self:
        """A trained nn.RNN as a TTRNN: exact without ranks and error, else the nearest that they allow."""
        return cls._from_torch(rnn, input_modes, output_modes, tt_ranks, relative_error, activation=rnn.nonlinearity)


class TTGRU(TTRecurrent):
    """`TTRecurrent` over TTGRUCell; in nn.GRU's place."""

    cell_class = TTGRUCell

    @classmethod
    def from_gru(
        cls,
        gru: nn.GRU,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        relative_error: float = 0.0,
    ) -> Self:
        """A trained nn.GRU as a TTGRU: exact without ranks and error, else the nearest that they allow."""
        return cls._from_torch(gru, input_modes, output_modes, tt_ranks, relative_error)


class TTLSTM(TTRecurrent):
    """`TTRecurrent` over TTLSTMCell; in nn.LSTM's place."""

    cell_class = TTLSTMCell

    @classmethod
    def from_lstm(
        cls,
        lstm: nn.LSTM,
        input_modes: Sequence[int],
        output_modes: Sequence[int],
        tt_ranks: Ranks | None = None,
        *,
        relative_error: float = 0.0,
    ) -> Self:
        """A trained nn.LSTM as a TTLSTM: exact without ranks and error, else the nearest that they allow."""
        return cls._from_torch(lstm, input_modes, output_modes, tt_ranks, relative_error)


NETWORKS: dict[str, Callable[..., TTRecurrent]] = {"rnn": TTRNN, "gru": TTGRU, "lstm": TTLSTM}

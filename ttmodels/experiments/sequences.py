"""What seglearn and sequentia share: windows of a signal read by nn.GRU or nn.LSTM, or by the TT one in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ttmodels.recurrent import TTGRU, TTLSTM

DENSE = {"GRU": nn.GRU, "LSTM": nn.LSTM}
TT = {"GRU": TTGRU, "LSTM": TTLSTM}


class WindowsClassifier(nn.Module):
    """Windows of steps as one input each, a recurrence, its output averaged over them, dropout, and a dense head.

    Args:
        label: GRU, LSTM, TT-GRU or TT-LSTM.
        input_modes: multiply to window * channels.
        ranks: of the train that reads the input; what is between hidden states is dense in all.

    Shape: [batch, time, channels], time a multiple of the window, all zeros where there is no signal -> logits.
    """

    def __init__(
        self,
        label: str,
        window: int,
        input_modes: Sequence[int],
        hidden_modes: Sequence[int],
        ranks: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.window = window
        hidden = math.prod(hidden_modes)
        cell = label.removeprefix("TT-")
        self.rnn: nn.Module
        if label == cell:
            self.rnn = DENSE[cell](math.prod(input_modes), hidden, batch_first=True)
        else:
            self.rnn = TT[cell](input_modes, hidden_modes, ranks, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (-1, self.window)).flatten(2)
        outputs, _ = self.rnn(windows)
        there = windows.any(2, keepdim=True)
        mean = (outputs * there).sum(1) / there.sum(1)
        logits: Tensor = self.head(self.dropout(mean))
        return logits

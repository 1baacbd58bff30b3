import pytest
import torch
from torch import nn

from ttmodels.experiments.sequences import WindowsClassifier
from ttmodels.recurrent import TTRecurrent


def classifier(label: str) -> WindowsClassifier:
    torch.manual_seed(0)
    return WindowsClassifier(label, 4, (3, 4), (2, 3), 2, 5, dropout=0.5).eval()


@pytest.mark.parametrize("label", ["GRU", "TT-GRU", "LSTM", "TT-LSTM"])
def test_what_is_behind_the_signal_changes_nothing(label: str) -> None:
    """Zeros behind a signal are no part of it: what is read is what a signal of its own length gives."""
    model = classifier(label)
    x = torch.randn(2, 8, 3)
    longer = torch.cat([x, torch.zeros(2, 12, 3)], 1)
    torch.testing.assert_close(model(longer), model(x))
    torch.testing.assert_close(model(x), torch.cat([model(x[:1]), model(x[1:])]))


def test_a_window_is_one_step_of_the_recurrence() -> None:
    model = classifier("GRU")
    x = torch.randn(2, 8, 3)
    assert isinstance(model.rnn, nn.GRU)
    outputs, _ = model.rnn(x.reshape(2, 2, 12))
    torch.testing.assert_close(model(x), model.head(outputs.mean(1)))


def test_both_have_the_same_hidden_size() -> None:
    dense, tt = classifier("LSTM"), classifier("TT-LSTM")
    assert isinstance(dense.rnn, nn.LSTM)
    assert isinstance(tt.rnn, TTRecurrent)
    assert dense.rnn.hidden_size == tt.rnn.hidden_size == 6
    assert dense.rnn.input_size == tt.rnn.input_size == 12

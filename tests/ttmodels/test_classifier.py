import dataclasses

import pytest
import torch

from service.manifest import Scaling
from tests.made import tiny_config
from tests.tolerances import CONTRACTION
from ttmodels.activations import hard_sigmoid
from ttmodels.cells import TTGRUCell
from ttmodels.classifier import ClipClassifier
from ttmodels.linear import TTLinear, penalty


def clips(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, time, 12, 16, 3), dtype=torch.uint8)


def test_scaling_is_per_channel() -> None:
    model = ClipClassifier(tiny_config(scaling=Scaling(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))))
    frames = clips(1, 1)
    want = (frames.double() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    assert torch.allclose(model.scale(frames).double(), want.flatten(2), atol=CONTRACTION)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_changes_nothing(pooling: str, bidirectional: bool) -> None:
    """A clip in a longer batch gets the logits that it gets alone."""
    model = ClipClassifier(tiny_config(pooling=pooling, bidirectional=bidirectional, num_layers=2)).eval()
    batch, lengths = clips(3, 8), torch.tensor([8, 3, 1])
    together = model(batch, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(batch[i : i + 1, :length])
        assert torch.allclose(together.logits[i], alone.logits[0], atol=CONTRACTION)
        assert torch.allclose(together.logits_over_time[i, :length], alone.logits_over_time[0], atol=CONTRACTION)
        assert bool((together.logits_over_time[i, length:] == together.logits_over_time[i, length - 1]).all())


def test_differences_of_frames() -> None:
    """A scene that does not change is nothing, and a change is seen where it happens."""
    config = tiny_config(difference=True)
    model, frames = ClipClassifier(config).eval(), clips(2, 5)
    plain = ClipClassifier(dataclasses.replace(config, difference=False)).eval()
    plain.load_state_dict(model.state_dict())
    scaled = plain.scale(frames)
    explicit = scaled - torch.cat([scaled[:, :1], scaled[:, :-1]], 1)
    outputs, _ = plain.rnn(explicit)
    assert torch.allclose(model(frames).logits_over_time, plain.head(outputs), atol=CONTRACTION)
    still, other = frames[:, :1].expand(-1, 5, -1, -1, -1), clips(2, 1).expand(-1, 5, -1, -1, -1)
    assert torch.equal(model(still).logits, model(other).logits)
    assert not torch.allclose(model(frames).logits, model(still).logits, atol=CONTRACTION)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_pooling(bidirectional: bool) -> None:
    frames = clips(2, 5)
    for pooling in ("last", "mean"):
        out = ClipClassifier(tiny_config(pooling=pooling, bidirectional=bidirectional)).eval()(frames)
        want = out.logits_over_time[:, -1] if pooling == "last" else out.logits_over_time.mean(1)
        assert torch.allclose(out.logits, want)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_last_step_of_both_directions_is_torchs_final_state(cell: str) -> None:
    """At full rank, against torch's own network with the same weights."""
    model = ClipClassifier(tiny_config(cell=cell, bidirectional=True)).eval()
    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    theirs = kind(576, 16, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for mine, suffix in zip(model.cells, ("", "_reverse"), strict=True):
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(mine.projection.full().T)
            getattr(theirs, f"bias_ih_l0{suffix}").copy_(mine.projection.bias)
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(mine.hidden.weight)
            getattr(theirs, f"bias_hh_l0{suffix}").copy_(mine.hidden.bias)
    frames = clips(2, 5)
    state = theirs(model.scale(frames))[1]
    h = state[0] if cell == "lstm" else state
    assert torch.allclose(model(frames).logits, model.head(torch.cat([h[0], h[1]], -1)), atol=CONTRACTION)


def test_the_options_reach_the_network() -> None:
    torch.manual_seed(0)
    model = ClipClassifier(
        tiny_config(
            cell="gru", num_layers=2, activation="elu", recurrent_activation="hard_sigmoid", reset_after=False,
            recurrent_ranks=(2,), dropout=0.25,
        )
    )  # fmt: skip
    assert (model.rnn.num_layers, model.rnn.dropout) == (2, 0.25)
    for cell in model.cells:
        assert isinstance(cell, TTGRUCell)
        assert (cell.activation, cell.recurrent_activation) == (torch.nn.functional.elu, hard_sigmoid)
        assert not cell.reset_after
        assert isinstance(cell.hidden, TTLinear)
        assert cell.hidden.shape.tt_ranks == (1, 2, 2, 2, 1)


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    model, frames = ClipClassifier(tiny_config(dropout=0.5)), clips(1, 4)
    assert not torch.equal(model(frames).logits, model(frames).logits)
    model.eval()
    assert torch.equal(model(frames).logits, model(frames).logits)


@pytest.mark.parametrize(
    "more", [{}, {"num_layers": 2, "bidirectional": True, "recurrent_ranks": (2,)}], ids=["one", "all"]
)
def test_compression_compares_with_the_dense_network(more: dict[str, object]) -> None:
    model = ClipClassifier(tiny_config(**more))
    dense = torch.nn.GRU(576, 16, model.rnn.num_layers, bidirectional=model.rnn.bidirectional)
    saved = model.compression()
    dense_rnn = sum(p.numel() for p in dense.parameters())
    train = model.projection.shape.num_parameters
    assert saved.input_to_hidden == pytest.approx(dense.weight_ih_l0.numel() / train)
    assert saved.rnn == pytest.approx(dense_rnn / sum(p.numel() for p in model.rnn.parameters()))
    assert saved.model == pytest.approx((dense_rnn + 16 * model.rnn.num_directions * 3 + 3) / model.num_parameters())


@pytest.mark.parametrize("frames", [torch.zeros(1, 2, 12, 16, 3), torch.zeros(1, 2, 16, 12, 3, dtype=torch.uint8)])
def test_other_frames_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 frames \[batch, time, 12, 16, 3\]"):
        ClipClassifier(tiny_config())(frames)


def test_recurrent_dropout_and_the_penalty_reach_the_network() -> None:
    plain, varied = (ClipClassifier(tiny_config(**more)) for more in ({}, {"recurrent_dropout": 0.5, "kernel_l2": 0.1}))
    frames = clips(1, 6)
    assert torch.equal(plain(frames).logits, plain(frames).logits)
    assert not torch.equal(varied(frames).logits, varied(frames).logits)
    assert float(penalty(plain)) == 0
    weight = varied.projection.full().detach()
    assert float(penalty(varied).detach()) == pytest.approx(0.1 * float(weight.square().sum()), rel=1e-4)

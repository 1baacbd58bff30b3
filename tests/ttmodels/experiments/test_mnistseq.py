from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ttmodels.experiments.mnistseq import (
    COLOURS,
    LONGEST,
    DigitsClassifier,
    MNISTSeq,
    drawing,
    drawn,
    lengths_of,
    relevance,
    share_at_a_zero,
)

IMAGES = np.random.default_rng(0).integers(1, 256, (50, 28, 28), np.uint8)
LABELS = np.arange(50) % 10


def test_sequences_are_digits_and_their_target() -> None:
    sequences = drawn(IMAGES, LABELS, 300, np.random.default_rng(0))
    lengths = lengths_of(sequences.x)
    assert (int(lengths.min()), int(lengths.max())) == (2, 31)
    known = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    for x, y, digits, length in zip(sequences.x, sequences.y, sequences.digits, lengths.tolist(), strict=True):
        said = [known[step.numpy().tobytes()] for step in x[:length]]
        assert digits.tolist() == said + [-1] * (LONGEST - length)
        assert y == (0 in said)


@pytest.mark.parametrize("label", MNISTSeq.published)
def test_what_it_says_over_time_ends_with_what_it_says(label: str) -> None:
    """And the zeros behind a sequence, or what stands beside it, change nothing."""
    model = MNISTSeq().model(label).eval()
    assert isinstance(model, DigitsClassifier)
    x = drawn(IMAGES, LABELS, 20, np.random.default_rng(0)).x
    lengths = lengths_of(x)
    logits = model(x)
    assert torch.allclose(model.over_time(x)[torch.arange(20), lengths - 1], logits, atol=1e-6)
    for row, length, alone in zip(x, lengths.tolist(), logits, strict=True):
        assert torch.allclose(model(row[None, :length])[0], alone, atol=1e-6)


def test_tt_has_the_packages_size() -> None:
    assert [p.numel() for p in MNISTSeq().model("TT-LSTM").rnn.cells[0].projection.cores] == [448, 448, 256]


def test_relevance_adds_up_to_the_answer() -> None:
    model = DigitsClassifier("gru", tt=True)
    x = drawn(IMAGES, LABELS, 20, np.random.default_rng(0)).x
    moved = relevance(model, x)
    logits = model(x)
    assert torch.allclose(moved.sum(1), logits[:, 1] - logits[:, 0], atol=1e-5)
    assert not moved[torch.arange(LONGEST) >= lengths_of(x)[:, None]].any()


def test_share_at_a_zero() -> None:
    digits = torch.tensor([[3, 0, 7], [0, 0, 1], [5, 6, -1], [0, 2, -1]])
    moved = torch.tensor([[-1.0, 2, 1], [0, 1, 2], [9, 1, 0], [3, -4, 0]])
    assert share_at_a_zero(moved, digits) == pytest.approx(2 / 3)


def test_the_drawing() -> None:
    x = drawn(IMAGES, LABELS, 3, np.random.default_rng(0)).x
    moved = torch.zeros(3, LONGEST)
    moved[1, 4], moved[1, 5] = 2.0, -1.0
    image = drawing(x, moved).reshape(3, 72, LONGEST, 28, 3)
    assert np.array_equal(255 - image[1, :28, 4, :, 0], x[1, 4].view(28, 28))
    for step, colour, height in ((4, "rise", 19), (5, "fall", 10)):
        assert (image[1, :, step] == COLOURS[colour]).all(-1).any(1).sum() == height
    assert set(np.unique(image[0, 28:])) == {160, 255}


def test_the_picture_and_the_figure(tmp_path: Path) -> None:
    experiment = MNISTSeq()
    data = experiment.made(0)
    figures = experiment.look(experiment.model("TT-GRU"), data, tmp_path / "new" / "a")
    assert tuple(figures) == experiment.looks
    assert 0 <= figures["relevance at a 0"] <= 1
    with av.open(str(tmp_path / "new" / "a.png")) as file:
        assert next(file.decode(video=0)).width == 31 * 28

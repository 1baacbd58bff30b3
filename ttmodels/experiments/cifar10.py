"""CIFAR-10: a TT layer on raw pixels in the place of the dense one.

Reference: the Keras package of Yang, Krompass, Tresp (ICML 2017), Experiment_CIFAR10.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ttmodels.config import MLPConfig
from ttmodels.data.cifar10 import LABELS, load_cifar10, load_jpegs
from ttmodels.experiments.frame import Data, Experiment, Fit, Split, parted
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
SIZE, PATCH = 32, 8
LAYERS = {
    "dense": TTShape((3072,), (256,), (1, 1)),  # one core is a dense matrix
    "TT": TTShape((16, 192), (16, 16), (1, 8, 1)),
    "TT-wide": TTShape((8, 8, 8, 6), (10, 10, 10, 10), (1, 2, 2, 2, 1)),
}


decoded = functools.cache(load_jpegs)
"""Once for all models and seeds."""


class Patches(nn.Module):
    """Pixels patch by patch, so that the first mode of a train is a patch's place and the others what is in it.

    Shape: [batch, 32, 32, 3] -> [batch, 16, 64, 3].
    """

    def forward(self, x: Tensor) -> Tensor:
        cut = x.view(-1, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH, 3).transpose(2, 3)
        return cut.reshape(len(x), -1, PATCH * PATCH, 3)


class CIFAR10(Experiment):
    name = "cifar10"
    about = (
        "The publisher's binary release; a tenth of the 50,000 images to train on is held back to stop by. "
        "3072 -> 256, relu, dropout .2 and a dense head. The TT layer is 16x192 -> 16x16, rank 8, of pixels patch by "
        "patch (16 of 8x8); TT-wide is the package's layer, 8x8x8x6 -> 10x10x10x10, rank 2, of pixels row by row. "
        "Training images are mirrored and moved by up to four pixels. Fit and dropout are the same for all models."
    )
    source = "nothing; the package names no figures"
    published: ClassVar = dict.fromkeys(LAYERS, "-")
    fit = Fit(epochs=8, batch_size=128, learning_rate=2e-3, weight_decay=1e-2, patience=8)

    def load(self, folder: Path | None, seed: int) -> Data:
        rest, test = (_split(*self.images(folder or Path("data/cifar10"), split)) for split in SPLITS)
        return Data(*parted(rest, 0.1, seed), test)

    def images(self, folder: Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        return load_cifar10(folder, split)

    def made(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        y = (np.arange(200) % 10).astype(np.uint8)
        x = rng.integers(0, 50, (200, SIZE, SIZE, 3), np.uint8)
        x[np.arange(200), 6 + 2 * y] += 200  # a bright line, the lower the later the class
        return Data(*parted(_split(x[:150], y[:150]), 0.2, seed), _split(x[150:], y[150:]))

    def model(self, label: str) -> nn.Module:
        patches = label == "TT"
        config = MLPConfig(
            LABELS,
            (16, 64, 3) if patches else (SIZE, SIZE, 3),
            (LAYERS[label],),
            dropout=0.2,
            mean=(0.49, 0.48, 0.45),
            std=(0.25, 0.24, 0.26),
        )
        classifier = MLPClassifier(config)
        return nn.Sequential(Patches(), classifier) if patches else classifier

    def varied(self, x: Tensor) -> Tensor:
        """Half of a batch mirrored, all of it moved alike; what is moved in at one side was moved out at the other."""
        mirrored = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(2), x)
        down, right = torch.randint(-4, 5, (2,)).tolist()
        return mirrored.roll((down, right), (1, 2))


class CIFAR10JPEG(CIFAR10):
    name = "cifar10_jpeg"
    about = (
        "Not the binary release: all of its images as JPEG of quality 75, which is lossy, so the figures are not "
        "CIFAR-10's own. Otherwise as cifar10."
    )

    def images(self, folder: Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        return decoded(folder, split)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))

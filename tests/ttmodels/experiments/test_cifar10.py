import numpy as np
import torch

from ttmodels.experiments.cifar10 import CIFAR10, LAYERS, Patches


def test_sizes() -> None:
    assert LAYERS["TT-wide"].num_parameters == 8 * 10 * 2 + 2 * (2 * 8 * 10 * 2) + 2 * 6 * 10  # the package's
    assert LAYERS["TT-wide"].out_features == 10_000
    assert LAYERS["TT"].out_features == LAYERS["dense"].out_features
    assert LAYERS["TT"].compression > 20


def test_patches_are_squares_of_the_image() -> None:
    x = torch.arange(2 * 32 * 32 * 3).view(2, 32, 32, 3)
    patches = Patches()(x)
    assert patches.shape == (2, 16, 64, 3)
    for place in range(16):
        down, right = 8 * (place // 4), 8 * (place % 4)
        assert torch.equal(patches[:, place].view(2, 8, 8, 3), x[:, down : down + 8, right : right + 8])


def test_an_image_is_mirrored_and_moved() -> None:
    """Each of a batch is one of the two, and all are moved alike."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    found = set()
    for _ in range(200):
        moved = CIFAR10().varied(x)
        (down, right) = next(
            (down, right)
            for down in range(-4, 5)
            for right in range(-4, 5)
            if any(torch.equal(moved[0], image.roll((down, right), (0, 1))) for image in (x[0], x[0].flip(1)))
        )
        found.add((down, right))
        back = moved.roll((-down, -right), (1, 2))
        same = [torch.equal(a, b) for a, b in zip(back, x, strict=True)]
        mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(back, x, strict=True)]
        assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert len(found) > 60

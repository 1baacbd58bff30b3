import math

import numpy as np
import pytest
import torch

from ttmodels.data.gene_expression import NUM_CLASSES, SIZES
from ttmodels.experiments.gene_expression import GeneExpression, Mice, Yeast


@pytest.mark.parametrize("name", SIZES)
def test_the_layer_has_the_published_size(name: str) -> None:
    kind = GeneExpression.sets[name]
    assert math.prod(kind.input_modes) >= SIZES[name][0]
    assert kind.num_outputs == NUM_CLASSES.get(name, SIZES[name][1])
    sizes = {"lymphoma": 19_200, "prostate": 22_650, "yeast": 3_000, "mice": 10_500}
    cores = [p.numel() for key, p in kind().model(f"{name}-TT").named_parameters() if "cores" in key]
    assert sum(cores) == sizes[name]


def test_values_are_told_from_their_mean_in_what_is_not_tested() -> None:
    known, test = np.array([[1.0, 10], [3, 30]], np.float32), np.array([[5.0, 50]], np.float32)
    x = np.zeros((2, 106), np.float32)
    (_, centred), (_, tested) = Yeast().centred((x, known), (x[:1], test))
    assert centred.tolist() == [[-1, -10], [1, 10]]
    assert tested.tolist() == [[3, 30]]


def test_features_that_are_missing_in_the_modes_product_are_zeros() -> None:
    data = Mice().made(0)
    assert data.train[0].shape[1] == 150
    assert not data.train[0][:, 145:].any()
    assert data.train[0][:, :145].any(0).all()
    assert data.train[1].shape == (32, 83)
    assert data.train[1].dtype == torch.float32

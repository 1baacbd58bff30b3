"""Each activation against its formula in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tolerances import DOUBLE
from ttmodels.activations import ACTIVATIONS, find_activation, hard_sigmoid

X = np.concatenate([np.linspace(-6, 6, 97), [-2.5, 0.0, 2.5]])
ERF = np.vectorize(math.erf)

FORMULAS = {
    "linear": X,
    "tanh": np.tanh(X),
    "sigmoid": 1 / (1 + np.exp(-X)),
    "hard_sigmoid": np.clip(0.2 * X + 0.5, 0, 1),
    "relu": np.maximum(X, 0),
    "elu": np.where(X > 0, X, np.exp(X) - 1),
    "selu": 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * (np.exp(X) - 1)),
    "gelu": X * 0.5 * (1 + ERF(X / math.sqrt(2))),
    "silu": X / (1 + np.exp(-X)),
    "softplus": np.log1p(np.exp(X)),
    "softsign": X / (1 + np.abs(X)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formula(name: str) -> None:
    got = find_activation(name, "activation")(torch.from_numpy(X))
    assert np.allclose(got.numpy(), FORMULAS[name], rtol=1e-9, atol=DOUBLE)


def test_hard_sigmoid_is_keras_and_not_torchs() -> None:
    x = torch.tensor([-2.5, -1.0, 0.0, 1.0, 2.5], dtype=torch.double)
    want = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0], dtype=torch.double)
    assert torch.allclose(hard_sigmoid(x), want, atol=DOUBLE)
    assert not torch.allclose(hard_sigmoid(x), torch.nn.functional.hardsigmoid(x), atol=0.01)


def test_none_is_linear_and_a_callable_is_itself() -> None:
    x = torch.randn(3)
    assert torch.equal(find_activation(None, "activation")(x), x)
    assert find_activation(torch.cos, "activation") is torch.cos


def test_an_unknown_name_is_refused_by_its_argument() -> None:
    with pytest.raises(ValueError, match=r"recurrent_activation: expected one of linear, .* got 'than'"):
        find_activation("than", "recurrent_activation")

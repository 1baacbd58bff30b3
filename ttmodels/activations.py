"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def hard_sigmoid(x: Tensor) -> Tensor:
    """clip(0.2 x + 0.5, 0, 1), as Keras had it; torch's own has another slope, 1 / 6."""
    return torch.clamp(0.2 * x + 0.5, 0, 1)


def linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "linear": linear,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "relu": torch.relu,
    "elu": functional.elu,
    "selu": torch.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
}


def find_activation(name: str | Activation | None, argument: str) -> Activation:
    """The function of that name, or the callable itself; None is linear.

    Raises:
        ValueError: an unknown name; says which argument.
    """
    if name is None:
        return linear
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"{argument}: expected one of {', '.join(ACTIVATIONS)} or a callable, got {name!r}")
    return ACTIVATIONS[name]

"""An image or a feature vector in, its class out: TT layers and a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttmodels.config import MLPConfig
from ttmodels.linear import TTLinear


class MLPClassifier(nn.Module):
    """Images or feature vectors to logits.

    Shape: uint8 [batch, height, width, channels] or float32 [batch, features], as the configuration says
        -> logits [batch, classes].
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            TTLinear(shape.input_modes, shape.output_modes, shape.tt_ranks, activation=config.activation)
            for shape in config.layers
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.layers[-1].out_features, len(config.labels))
        size = config.input_shape[-1]
        mean, std = (torch.tensor(values).expand(size) for values in (config.mean, config.std))
        self.input_scale: Tensor
        self.input_shift: Tensor
        self.register_buffer("input_scale", 1 / ((255 if self.reads_images else 1) * std), persistent=False)
        self.register_buffer("input_shift", -mean / std, persistent=False)

    @property
    def reads_images(self) -> bool:
        return len(self.config.input_shape) == 3

    @property
    def trains(self) -> list[TTLinear]:
        return [layer for layer in self.layers if isinstance(layer, TTLinear)]

    def forward(self, x: Tensor) -> Tensor:
        shape, dtype = self.config.input_shape, torch.uint8 if self.reads_images else torch.float32
        if x.shape[1:] != shape or x.dtype != dtype:
            raise ValueError(f"expected {dtype} [batch, {', '.join(map(str, shape))}], got {x.dtype} {list(x.shape)}")
        x = (x * self.input_scale + self.input_shift).flatten(1)
        for layer in self.trains:
            x = self.dropout(layer(x))
        logits: Tensor = self.head(x)
        return logits

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def compression(self) -> float:
        """How many times more weights the same network has with dense layers."""
        shapes = [layer.shape for layer in self.trains]
        saved = sum(s.in_features * s.out_features - s.num_parameters for s in shapes)
        return (self.num_parameters() + saved) / self.num_parameters()

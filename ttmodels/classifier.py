"""A clip in, its class out: scaling, a TT recurrence over the frames, a linear head at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from service.manifest import Compression
from ttmodels.cells import TTCell
from ttmodels.config import ModelConfig
from ttmodels.constraints import Penalty
from ttmodels.linear import TTLinear
from ttmodels.recurrent import NETWORKS


class ClipLogits(NamedTuple):
    logits: Tensor
    """[batch, classes]."""
    logits_over_time: Tensor
    """[batch, time, classes]; past a clip's length they repeat its last."""


class ClipClassifier(nn.Module):
    """uint8 clips to logits.

    Shape: frames uint8 [batch, time, height, width, 3], lengths [batch] or None -> ClipLogits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rnn = NETWORKS[config.cell](
            config.input_modes,
            config.output_modes,
            config.tt_ranks,
            batch_first=True,
            recurrent_dropout=config.recurrent_dropout,
            kernel_penalty=Penalty(l2=config.kernel_l2) if config.kernel_l2 else None,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, len(config.labels))
        mean, std = torch.tensor(config.scaling.mean), torch.tensor(config.scaling.std)
        self.pixel_scale: Tensor
        self.pixel_shift: Tensor
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

    def scale(self, frames: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std per channel, frames flattened. [B, T, H, W, 3] -> [B, T, H W 3]."""
        return (frames.to(self.pixel_scale.dtype).mul_(self.pixel_scale).add_(self.pixel_shift)).flatten(2)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> ClipLogits:
        sampling = self.config.sampling
        if frames.ndim != 5 or frames.shape[2:] != (sampling.height, sampling.width, 3) or frames.dtype != torch.uint8:
            raise ValueError(
                f"expected uint8 frames [batch, time, {sampling.height}, {sampling.width}, 3], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        outputs, _ = self.rnn(self.scale(frames), lengths=lengths)
        steps = self.head(self.dropout(outputs))
        time = frames.shape[1]
        if lengths is None:
            return ClipLogits(steps[:, -1] if self.config.pooling == "last" else steps.mean(1), steps)
        lengths = lengths.to(device=steps.device, dtype=torch.long).clamp(1, time)
        position = torch.arange(time, device=steps.device)
        last = torch.minimum(position[None], lengths[:, None] - 1)
        steps = torch.gather(steps, 1, last[..., None].expand_as(steps))
        if self.config.pooling == "last":
            return ClipLogits(steps[:, -1], steps)
        inside = (position[None] < lengths[:, None]).to(steps.dtype)
        return ClipLogits((steps * inside[..., None]).sum(1) / lengths[:, None], steps)

    @property
    def projection(self) -> TTLinear:
        """The train from a frame to the gates."""
        cell = self.rnn.cells[0]
        assert isinstance(cell, TTCell)
        return cell.projection

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def compression(self) -> Compression:
        """How many times more weights the same network has with a dense input-to-hidden matrix."""
        shape = self.projection.shape
        saved = shape.in_features * shape.out_features - shape.num_parameters
        rnn = sum(p.numel() for p in self.rnn.parameters())
        model = self.num_parameters()
        return Compression(
            input_to_hidden=shape.in_features * shape.out_features / shape.num_parameters,
            rnn=(rnn + saved) / rnn,
            model=(model + saved) / model,
        )

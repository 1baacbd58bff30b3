"""A clip in, its class out: scaling or a backbone, a TT recurrence over the frames, a linear head at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from service.manifest import Compression
from ttmodels.backbone import NUM_CHANNELS, Backbone
from ttmodels.cells import TTCell
from ttmodels.config import ModelConfig
from ttmodels.constraints import Penalty
from ttmodels.linear import TTLinear
from ttmodels.recurrent import NETWORKS


class ClipLogits(NamedTuple):
    logits: Tensor
    """[batch, classes]: by the pooling, those over time at the clip's last step, or their mean over its steps."""
    logits_over_time: Tensor
    """[batch, time, classes]; past a clip's length they repeat its last."""


def changes(steps: Tensor) -> Tensor:
    """Each step less the one before it, [batch, time, features]; the first has none and is 0."""
    return torch.diff(steps, dim=1, prepend=steps[:, :1])


class ClipClassifier(nn.Module):
    """uint8 clips to logits. Behind a backbone its features of a clip are taken too, in the place of the clip.

    The head reads the last layer's hidden state at each step. Of a bidirectional network that is the state of both
    directions at this step where the steps' mean is taken; where the last step counts, the backward direction gives its
    final state, which has read the whole clip, to every step, so that the last step has what torch calls h_n.

    Shape: frames uint8 [batch, time, height, width, 3], or a backbone's features float [batch, time, features]; lengths
    [batch] (1 to time) or None -> ClipLogits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone_features, difference=config.difference) if config.backbone else None
        self.rnn = NETWORKS[config.cell](
            config.input_modes,
            config.output_modes,
            config.tt_ranks,
            batch_first=True,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            recurrent_dropout=config.recurrent_dropout,
            kernel_penalty=Penalty(l2=config.kernel_l2) if config.kernel_l2 else None,
            **config.cell_options(),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size * self.rnn.num_directions, len(config.labels))
        self.feature_mean: Tensor
        self.feature_std: Tensor
        if config.backbone:
            self.register_buffer("feature_mean", torch.zeros(NUM_CHANNELS))
            self.register_buffer("feature_std", torch.ones(NUM_CHANNELS))
        mean, std = torch.tensor(config.scaling.mean), torch.tensor(config.scaling.std)
        self.pixel_scale: Tensor
        self.pixel_shift: Tensor
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

    def scale(self, frames: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std per channel, frames flattened. [B, T, H, W, 3] -> [B, T, H W 3]."""
        return (frames.to(self.pixel_scale.dtype).mul_(self.pixel_scale).add_(self.pixel_shift)).flatten(2)

    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set what a backbone's features are standardised by, [channels] each."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def standardise(self, features: Tensor) -> Tensor:
        """A backbone's features as (feature - mean) / std by channel. [B, T, N] -> [B, T, N]."""
        by_channel = features.unflatten(-1, (-1, NUM_CHANNELS))
        return torch.as_tensor((by_channel - self.feature_mean) / self.feature_std).flatten(-2)

    def features(self, frames: Tensor) -> Tensor:
        """Of uint8 frames [B, T, H, W, 3]: scaled pixels, or what the backbone sees. -> [B, T, N]."""
        sampling = self.config.sampling
        if frames.ndim != 5 or frames.shape[2:] != (sampling.height, sampling.width, 3) or frames.dtype != torch.uint8:
            raise ValueError(
                f"expected uint8 frames [batch, time, {sampling.height}, {sampling.width}, 3], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        return self.scale(frames) if self.backbone is None else torch.as_tensor(self.backbone(frames))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> ClipLogits:
        have_features = self.backbone is not None and frames.ndim == 3
        read = frames if have_features else self.features(frames)
        if self.backbone is not None:
            read = self.standardise(read)
        elif self.config.difference:
            read = changes(read)
        outputs, state = self.rnn(read, lengths=lengths)
        if self.config.bidirectional and self.config.pooling == "last":
            backward = (state[0] if isinstance(state, tuple) else state)[-1]
            forward = outputs[..., : self.config.hidden_size]
            outputs = torch.cat([forward, backward[:, None].expand_as(forward)], -1)
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
        """The train from a frame to the gates; the first of two where the clip is read in both directions."""
        return self.cells[0].projection

    @property
    def cells(self) -> list[TTCell]:
        """Layer after layer, the forward direction before the backward."""
        return [cell for cell in self.rnn.cells if isinstance(cell, TTCell)]

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def compression(self) -> Compression:
        """How many times more weights the same network has with dense matrices."""
        shape = self.projection.shape
        trains = [module.shape for module in self.rnn.modules() if isinstance(module, TTLinear)]
        saved = sum(train.in_features * train.out_features - train.num_parameters for train in trains)
        rnn = sum(p.numel() for p in self.rnn.parameters())
        model = self.num_parameters()
        return Compression(
            input_to_hidden=shape.compression,
            rnn=(rnn + saved) / rnn,
            model=(model + saved) / model,
        )

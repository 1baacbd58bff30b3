"""Models and clips that the tests make themselves, small and quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from service.video import Sampling
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig
from ttmodels.data.encode import write_video
from ttmodels.data.moving_digits import ball_mask, make_clip

TINY = Sampling(num_frames=6, height=12, width=16)


def tiny_config(**changes: object) -> ModelConfig:
    """A model of 16x12 frames in six cores' worth of weights."""
    values: dict[str, object] = {
        "labels": ("left", "right", "still"),
        "input_modes": (3, 4, 4, 12),
        "output_modes": (2, 2, 2, 2),
        "tt_ranks": (1, 3, 3, 3, 1),
        "sampling": TINY,
    }
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


@torch.no_grad()
def random_classifier(config: ModelConfig) -> ClipClassifier:
    """A model whose every weight matters to its logits, which are of order 1 to 10: biases and the head too."""
    torch.manual_seed(7)
    model = ClipClassifier(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.normal_()
    model.head.weight.normal_()
    return model.eval()


def random_clips(batch: int, time: int, *, height: int = 12, width: int = 16) -> torch.Tensor:
    """uint8 [batch, time, height, width, 3]; each frame has a colour of its own under the noise."""
    colour = torch.randint(0, 128, (batch, time, 1, 1, 3), dtype=torch.uint8)
    return colour + torch.randint(0, 128, (batch, time, height, width, 3), dtype=torch.uint8)


def write_folder(root: Path, motions: tuple[str, ...], per_class: int, *, size: tuple[int, int] = (64, 48)) -> Path:
    """ROOT/MOTION/N.mp4: balls, in H.264."""
    for label, motion in enumerate(motions):
        (root / motion).mkdir(parents=True)
        for i in range(per_class):
            rng = np.random.default_rng((7, label, i))
            frames = make_clip(rng, motion, ball_mask, num_frames=12, width=size[0], height=size[1])
            write_video(root / motion / f"{i}.mp4", frames, options={"preset": "ultrafast", "crf": "20"})
    return root

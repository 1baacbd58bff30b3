"""What a run is, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from service.video import Sampling
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.data.augment import Augmentation, sided
from ttmodels.data.decoded import DecodedClips
from ttmodels.distributed import Team


def model_summary(model: ClipClassifier) -> str:
    """What it reads, its train, its parameters."""
    config, shape, saved = model.config, model.projection.shape, model.compression()
    sampling = config.sampling
    sizes = [
        ("input-to-hidden", shape.num_parameters, saved.input_to_hidden),
        ("whole RNN", sum(p.numel() for p in model.rnn.parameters()), saved.rnn),
        ("whole model", model.num_parameters(), saved.model),
    ]
    lines = [
        f"classes          {len(config.labels)}: {', '.join(config.labels)}",
        f"sampling         {sampling.num_frames} frames of {sampling.width}x{sampling.height}, {_policy(sampling)}",
        *_backbone(model),
        f"TT-{config.cell.upper():<13} {shape.input_modes} -> {shape.output_modes}, ranks {shape.tt_ranks}",
        f"reads            {'what changes from frame to frame' if config.difference else 'frames'}",
        f"layers           {config.num_layers}, {'both directions' if config.bidirectional else 'forward'}",
    ]
    lines += [
        f"{name:<16} {count:>9,} parameters, {times:>10,.1f} times fewer than dense" for name, count, times in sizes
    ]
    return "\n".join(lines)


def run_summary(
    config: TrainConfig, augment: Augmentation, decoded: DecodedClips, labels: Sequence[str], team: Team
) -> str:
    """What is done to the clips, and how the model is trained on them."""
    changes = str(augment)
    if config.mirror_horizontal == "auto" and (names := sided(labels)):
        changes += f"; not mirrored left to right, which may matter to {', '.join(names)} (--mirror-horizontal)"
    warmup = f"a warm-up of {100 * config.warmup:g} % of the steps"
    rate = f"learning rate {config.learning_rate:g}, {config.schedule} after {warmup}"
    ends = f"ended after {config.patience} without a better one" if config.patience else "never ended early"
    losses = f"class weights {config.class_weights}, label smoothing {config.label_smoothing:g}"
    return "\n".join(
        [
            f"decoded clips    {decoded.num_cached} in the cache, {len(decoded) - decoded.num_cached} anew each epoch",
            f"augmentation     {changes}",
            f"training         {config.epochs} epochs, {ends}; {config.batch_size} clips a step; {rate}",
            f"loss             {losses}",
            f"computed         in {config.precision} on {team.device}" + f", {team.size} processes" * (team.size > 1),
        ]
    )


def _backbone(model: ClipClassifier) -> list[str]:
    if model.backbone is None:
        return []
    config = model.config
    return [f"backbone         {config.backbone}, frozen, {model.backbone.num_weights:,} weights; its "
            f"{config.backbone_features} features, {config.input_size:,} a frame, are kept in the cache"]  # fmt: skip


def _policy(sampling: Sampling) -> str:
    if sampling.policy == "rate":
        return f"{sampling.rate:g} a second"
    if sampling.policy == "windows":
        return f"windows of {sampling.window_length}, one every {sampling.window_stride} frames"
    return sampling.policy

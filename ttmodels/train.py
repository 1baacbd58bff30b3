"""Train a clip classifier on a folder of videos: `python -m ttmodels.train --data FOLDER --out runs/NAME`.

FOLDER has one sub-folder of videos per class. A share of each class is held back to choose the best epoch; test clips
belong in another folder and are never seen here. OUT gets best.safetensors, last.safetensors (to resume from) and
config.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from service.video import Sampling
from ttmodels import checkpoint
from ttmodels import config as configs
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier, ClipLogits
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.augment import Augmentation, swapped_labels
from ttmodels.data.folder import DecodedClips, list_clips, split_by_class
from ttmodels.evaluate import confusion_table, evaluate
from ttmodels.linear import penalty
from ttmodels.modes import balanced_modes, frame_modes
from ttmodels.tensor_train import TTShape

Batch = tuple[np.ndarray, np.ndarray]


def train(
    data: Path,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    cache: Path,
    resume: bool = False,
    device: str = "cpu",
) -> float:
    """Run to the last epoch; the best validation accuracy.

    Raises:
        ValueError: a folder that does not fit, or a run to resume that had another configuration.
    """
    clips = list_clips(data, model_config.labels)
    augment = Augmentation(
        swapped_labels(clips.labels, config.mirror_horizontal),
        swapped_labels(clips.labels, config.mirror_vertical),
        config.gain,
    )
    train_clips, valid_clips = split_by_class(clips, config.valid_fraction, config.seed)
    train_data = DecodedClips(train_clips, model_config.sampling, cache)
    valid_data = DecodedClips(valid_clips, model_config.sampling, cache)
    for path, reason in (train_data.unreadable | valid_data.unreadable).items():
        print(f"could not read {path}: {reason}", file=sys.stderr)

    torch.manual_seed(config.seed)
    model = ClipClassifier(model_config).to(device)
    progress = Progress(data_set=data.name, num_clips={"train": len(train_data), "valid": len(valid_data)})
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    if resume:
        saved = checkpoint.load(out / "last.safetensors")
        if (saved.model_config, saved.train_config) != (model_config, config):
            raise ValueError(f"{out}: the run to resume was started with another configuration, see its config.json")
        model.load_state_dict(saved.model().state_dict())
        saved.restore_optimizer(optimizer)
        progress = saved.progress
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(_both_as_json(model_config, config))
    print(_summary(model, train_data, valid_data))

    steps_per_epoch = -(-len(train_data) // config.batch_size)
    num_steps = config.epochs * steps_per_epoch
    for epoch in range(progress.epoch, config.epochs):
        started = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        rng, chance = np.random.default_rng((config.seed, epoch)), np.random.default_rng((config.seed, epoch, 1))
        varied = (augment(*batch, chance) for batch in train_data.batches(config.batch_size, rng))
        model.train()
        train_loss = 0.0
        bar = tqdm(_read_ahead(varied), f"epoch {epoch + 1}/{config.epochs}", steps_per_epoch, unit="batch")
        for step, batch in enumerate(bar, epoch * steps_per_epoch):
            frames, targets = (torch.from_numpy(part).to(device) for part in batch)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step / num_steps, config.warmup)
            loss = clip_loss(model(frames), targets, config.over_time_weight) + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            train_loss += loss.item() * len(targets) / len(train_data)
            bar.set_postfix(loss=f"{loss.item():.3f}")

        valid_loss, valid = evaluate(model, valid_data, "valid")
        progress.epoch = epoch + 1
        progress.history.append(
            {
                "train_loss": train_loss,
                "valid_loss": valid_loss,
                "valid_accuracy": valid.accuracy,
                "seconds": time.perf_counter() - started,
            }
        )
        print(f"epoch {epoch + 1}: train loss {train_loss:.4f}, valid loss {valid_loss:.4f}, "
              f"valid accuracy {valid.accuracy:.4f}")  # fmt: skip
        if valid.accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = valid.accuracy, epoch + 1
            checkpoint.save(out / "best.safetensors", model, config, progress)
        checkpoint.save(out / "last.safetensors", model, config, progress, optimizer)

    best = checkpoint.load(out / "best.safetensors")
    _, valid = evaluate(best.model(), valid_data, "valid")
    print(f"best epoch {best.progress.best_epoch}: valid accuracy {valid.accuracy:.4f}; {out / 'best.safetensors'}")
    print(confusion_table(model_config.labels, valid.confusion or ()))
    return valid.accuracy


def clip_loss(out: ClipLogits, targets: torch.Tensor, over_time_weight: float) -> torch.Tensor:
    """Cross-entropy of the clip, mixed with that of each step. The later half of the steps counts: before it even a
    perfect observer could not know."""
    loss = nn.functional.cross_entropy(out.logits, targets)
    if over_time_weight:
        steps = out.logits_over_time[:, out.logits_over_time.shape[1] // 2 :]
        every = nn.functional.cross_entropy(steps.flatten(0, 1), targets.repeat_interleave(steps.shape[1]))
        loss = (1 - over_time_weight) * loss + over_time_weight * every
    return loss


def schedule(done: float, warmup: float) -> float:
    """Factor of the learning rate at a share `done` of all steps: linear warm-up, then half a cosine to 0."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """One batch is read while another is computed on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _both_as_json(model_config: ModelConfig, config: TrainConfig) -> str:
    both = {"model": json.loads(configs.to_json(model_config)), "train": json.loads(configs.to_json(config))}
    return json.dumps(both, indent=2) + "\n"


def _summary(model: ClipClassifier, train_data: DecodedClips, valid_data: DecodedClips) -> str:
    config, shape, saved = model.config, model.projection.shape, model.compression()
    sampling = config.sampling
    sizes = [
        ("input-to-hidden", shape.num_parameters, saved.input_to_hidden),
        ("whole RNN", sum(p.numel() for p in model.rnn.parameters()), saved.rnn),
        ("whole model", model.num_parameters(), saved.model),
    ]
    lines = [
        f"classes          {len(config.labels)}: {', '.join(config.labels)}",
        f"clips            {len(train_data)} to train on, {len(valid_data)} to choose by",
        f"sampling         {sampling.num_frames} frames of {sampling.width}x{sampling.height}, {sampling.policy}",
        f"TT-{config.cell.upper():<13} {shape.input_modes} -> {shape.output_modes}, ranks {shape.tt_ranks}",
    ]
    lines += [
        f"{name:<16} {count:>9,} parameters, {times:>10,.1f} times fewer than dense" for name, count, times in sizes
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder of videos per class")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.safetensors")
    parser.add_argument("--cache", type=Path, help="folder for decoded clips; OUT/cache without it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; CUDA where there is one without it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")

    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=["rnn", "gru", "lstm"], default="gru")
    model.add_argument("--num-frames", type=int, default=16)
    model.add_argument("--width", type=int, default=160)
    model.add_argument("--height", type=int, default=120)
    model.add_argument("--hidden", type=int, default=64)
    model.add_argument("--rank", type=int, default=4, help="inner TT-rank")
    model.add_argument("--input-modes", type=int, nargs="+", help="of a frame; two for the lines, two for the columns")
    model.add_argument("--output-modes", type=int, nargs="+", help="of the hidden size; balanced without it")
    model.add_argument("--pooling", choices=["last", "mean"], default="last")
    model.add_argument("--dropout", type=float, default=0.0, help="before the head")
    model.add_argument("--recurrent-dropout", type=float, default=0.0, help="one choice of hidden units a clip")
    model.add_argument("--kernel-l2", type=float, default=0.0, help="penalty on the input-to-hidden matrix")

    run = parser.add_argument_group("run")
    for f in dataclasses.fields(TrainConfig):
        kind = str if f.default is None else type(f.default)
        run.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        sampling = Sampling(num_frames=options.num_frames, height=options.height, width=options.width)
        input_modes = tuple(options.input_modes or frame_modes(sampling.height, sampling.width))
        output_modes = tuple(options.output_modes or reversed(balanced_modes(options.hidden, len(input_modes))))
        model_config = ModelConfig(
            labels=list_clips(options.data).labels,
            input_modes=input_modes,
            output_modes=output_modes,
            tt_ranks=TTShape.make(input_modes, output_modes, options.rank).tt_ranks,
            cell=options.cell,
            pooling=options.pooling,
            dropout=options.dropout,
            recurrent_dropout=options.recurrent_dropout,
            kernel_l2=options.kernel_l2,
            sampling=sampling,
        )
        config = TrainConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(TrainConfig)})
        cache = options.cache or options.out / "cache"
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        train(options.data, options.out, model_config, config, cache=cache, resume=options.resume, device=device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

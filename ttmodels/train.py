"""Train a clip classifier on a folder of videos, or a list: `python -m ttmodels.train --data FOLDER --out runs/NAME`.

FOLDER has one sub-folder of videos per class. A list is a CSV file with the columns path (relative to the list) and
label, and perhaps group, fold and split (train, valid or test). A share of each class is held back for validation,
whole groups at a time, unless the list's split names clips for it. Test clips are those of --fold, or of the list's
split, and play no part until the best epoch is chosen. With --task multi_label a clip of a list may have several
labels, or none.

OUT gets best.safetensors, of the epoch with the best validation accuracy (multi-label: mean average precision), among
equal ones that with the lowest validation loss; last.safetensors, to resume from; config.json; data.json, with the
clips of each class, leaks, files that could not be read and baselines; test.json, where there are test clips; and the
decoded clips.

--resume goes on from OUT/last.safetensors with the configuration in it. Options need not be repeated. Those that are
may not differ, but for --epochs, which may be raised: the rest of the run then follows the schedule of the new number.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ttmodels.commandline import command, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "sklearn")

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from service.video import Sampling
from ttmodels import checkpoint
from ttmodels import config as configs
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.augment import Augmentation, sided
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import CACHE_BYTES, Batch, DecodedClips, unreadable_clips
from ttmodels.data.report import data_report
from ttmodels.data.split import split_clips
from ttmodels.evaluate import Figures, label_table, predict
from ttmodels.linear import penalty
from ttmodels.losses import clip_loss
from ttmodels.options import make_parser, new_run, options_given, resumed_run
from ttmodels.predictions import SCORES


def train(
    data: Path,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    cache: Path,
    cache_bytes: int = CACHE_BYTES,
    saved: Checkpoint | None = None,
    device: str = "cpu",
) -> float:
    """Run to the last epoch, from where `saved` stopped, else in the place of any run in `out`; the best score.

    Raises:
        ValueError: clips that do not fit, or a checkpoint that was not made to resume from.
    """
    clips = read_clips(data, model_config.labels, model_config.task)
    for warning in clips.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    augment = Augmentation.of(config, model_config.sampling.num_frames, clips.labels)
    split = split_clips(clips, config.valid_fraction, config.seed, config.fold)
    for warning in clips.take(split.valid).warnings:
        print(f"warning: {warning} to choose the best epoch by", file=sys.stderr)
    if clips.folds and not split.test:
        print("warning: the list has folds, and without --fold none of its clips test", file=sys.stderr)

    torch.manual_seed(config.seed)
    model = ClipClassifier(model_config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    progress = Progress(data_set=data.name)
    if saved is not None:
        model.load_state_dict(saved.model().state_dict())
        saved.restore_optimizer(optimizer)
        progress = saved.progress
    out.mkdir(parents=True, exist_ok=True)

    decoded = DecodedClips(
        clips, model_config.sampling, cache, max_bytes=cache_bytes, candidates=augment.candidates, change=augment
    )
    train_data, valid_data, test_data = (decoded.take(part) for part in split)
    parts = {"train": train_data, "valid": valid_data, "test": test_data}
    for line in unreadable_clips(decoded):
        print(line, file=sys.stderr)
    if not (len(train_data) and len(valid_data)):
        raise ValueError(f"{data}: {len(train_data)} clips to train on and {len(valid_data)} to choose by can be read")
    num_clips = {name: len(part) for name, part in parts.items() if len(part)}
    if saved is not None and num_clips != progress.num_clips:
        print(f"warning: the run to resume had {progress.num_clips} clips, and now there are {num_clips}: some that "
              "choose the best epoch may have been trained on", file=sys.stderr)  # fmt: skip
    progress.num_clips = num_clips
    report = data_report(parts, decoded.unreadable, config.seed)
    if saved is None:
        for path in (out / "best.safetensors", out / "last.safetensors", out / "test.json"):
            path.unlink(missing_ok=True)  # of a run that this one takes the place of
    (out / "config.json").write_text(_both_as_json(model_config, config))
    (out / "data.json").write_text(report.to_json())
    print(_summary(model, decoded), _changes(augment, config, clips.labels), report, sep="\n", flush=True)

    measure = SCORES[model_config.task]
    steps_per_epoch = -(-len(train_data) // config.batch_size)
    num_steps = config.epochs * steps_per_epoch
    for epoch in range(progress.epoch, config.epochs):
        started = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train_data))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        model.train()
        train_loss = 0.0
        title = f"epoch {epoch + 1}/{config.epochs}"
        coming = _read_ahead(train_data.varied(batches, (config.seed, epoch, 1)))
        bar = tqdm(coming, title, steps_per_epoch, unit="batch", disable=None)
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

        valid = predict(model, valid_data, "valid")
        valid_loss, score = valid.loss(), valid.score
        progress.epoch = epoch + 1
        progress.history.append(
            {
                "train_loss": train_loss,
                "valid_loss": valid_loss,
                "valid_score": score,
                "seconds": time.perf_counter() - started,
            }
        )
        print(f"epoch {epoch + 1}: train loss {train_loss:.4f}, valid loss {valid_loss:.4f}, "
              f"valid {measure} {score:.4f}", flush=True)  # fmt: skip
        if (score, -valid_loss) > (progress.best_score, -progress.best_loss):
            progress.best_score, progress.best_loss, progress.best_epoch = score, valid_loss, epoch + 1
            checkpoint.save(out / "best.safetensors", model, config, progress)
        checkpoint.save(out / "last.safetensors", model, config, progress, optimizer)

    best = checkpoint.load(out / "best.safetensors")
    valid = predict(best.model(), valid_data, "valid")
    print(f"best epoch {best.progress.best_epoch}: valid {measure} {valid.score:.4f} ({report.baselines('valid')}); "
          f"{out / 'best.safetensors'}")  # fmt: skip
    print(label_table(valid))
    if len(test_data):
        test = predict(best.model(), test_data, "test")
        figures = Figures(**dict(test.metrics("test")), checkpoint_sha256=best.sha256)
        (out / "test.json").write_text(figures.model_dump_json())
        print(f"test {measure} {test.score:.4f} ({report.baselines('test')})")
        print(label_table(test))
    return valid.score


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


def _summary(model: ClipClassifier, decoded: DecodedClips) -> str:
    config, shape, saved = model.config, model.projection.shape, model.compression()
    sampling = config.sampling
    sizes = [
        ("input-to-hidden", shape.num_parameters, saved.input_to_hidden),
        ("whole RNN", sum(p.numel() for p in model.rnn.parameters()), saved.rnn),
        ("whole model", model.num_parameters(), saved.model),
    ]
    lines = [
        f"classes          {len(config.labels)}: {', '.join(config.labels)}",
        f"decoded clips    {decoded.num_cached} in the cache, {len(decoded) - decoded.num_cached} anew each epoch",
        f"sampling         {sampling.num_frames} frames of {sampling.width}x{sampling.height}, {_policy(sampling)}",
        f"TT-{config.cell.upper():<13} {shape.input_modes} -> {shape.output_modes}, ranks {shape.tt_ranks}",
        f"reads            {'what changes from frame to frame' if config.difference else 'frames'}",
        f"layers           {config.num_layers}, {'both directions' if config.bidirectional else 'forward'}",
    ]
    lines += [
        f"{name:<16} {count:>9,} parameters, {times:>10,.1f} times fewer than dense" for name, count, times in sizes
    ]
    return "\n".join(lines)


def _changes(augment: Augmentation, config: TrainConfig, labels: Sequence[str]) -> str:
    line = f"augmentation     {augment}"
    if config.mirror_horizontal == "auto" and (names := sided(labels)):
        line += f"; not mirrored left to right, as it may matter to {', '.join(names)} (--mirror-horizontal)"
    return line


def _policy(sampling: Sampling) -> str:
    if sampling.policy == "rate":
        return f"{sampling.rate:g} a second"
    if sampling.policy == "windows":
        return f"windows of {sampling.window_length}, one every {sampling.window_stride} frames"
    return sampling.policy


@command
def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__ or "").parse_args(arguments)
    given = options_given(options)
    best, last = options.out / "best.safetensors", options.out / "last.safetensors"
    torch.set_num_threads(options.threads)
    device = _device(options.device)
    if options.resume:
        saved = checkpoint.load(last)
        model_config, config = resumed_run(saved, given)
        if saved.progress.epoch >= config.epochs:
            done, measure = saved.progress, SCORES[model_config.task]
            print(f"nothing left to do: all {config.epochs} epochs are done (more with --epochs); "
                  f"best epoch {done.best_epoch}: valid {measure} {done.best_score:.4f}; {best}")  # fmt: skip
            return 0
    else:
        saved = None
        if not options.overwrite and (best.exists() or last.exists()):
            raise ValueError(f"{options.out} holds a run already: go on with --resume, or start anew with --overwrite")
        model_config, config = new_run(read_clips(options.data, task=given.get("task", ModelConfig.task)).labels, given)
    try:
        cache = options.cache or options.out / "cache"
        train(
            options.data,
            options.out,
            model_config,
            config,
            cache=cache,
            cache_bytes=options.cache_bytes,
            saved=saved,
            device=device,
        )
    except KeyboardInterrupt:
        if last.exists():
            hint = "--resume goes on after the last whole epoch"
        else:
            hint = "no epoch was done, the same command starts again; clips decoded so far are kept"
        raise KeyboardInterrupt(hint) from None
    return 0


def _device(name: str | None) -> str:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


if __name__ == "__main__":
    sys.exit(main())

"""Train a clip classifier on a folder of videos, or a list: `python -m ttmodels.train --data FOLDER --out runs/NAME`.

FOLDER has one sub-folder of videos per class. A list is a CSV file with the columns path (relative to the list) and
label, and perhaps group, fold and split (train, valid or test). A share of each class is held back for validation,
whole groups at a time, unless the list's split names clips for it. Test clips are those of --fold, or of the list's
split, and play no part until the best epoch is chosen.

OUT gets best.safetensors, of the epoch with the best validation accuracy, among equal ones that with the lowest
validation loss; last.safetensors, to resume from; config.json; data.json, with the clips of each class, leaks, files
that could not be read and baselines; test.json, where there are test clips; and the decoded clips.

--resume goes on from OUT/last.safetensors with the configuration in it. Options need not be repeated. Those that are
may not differ, but for --epochs, which may be raised: the rest of the run then follows the schedule of the new number.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
import time
import typing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ttmodels.commandline import command, positive, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors", "sklearn")

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from service.cores import usable_cores
from service.video import Sampling
from ttmodels import checkpoint
from ttmodels import config as configs
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.classifier import ClipClassifier, ClipLogits
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.augment import Augmentation, swapped_labels
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import CACHE_BYTES, DecodedClips, unreadable_clips
from ttmodels.data.report import data_report
from ttmodels.data.split import split_clips
from ttmodels.evaluate import Figures, confusion_table, evaluate
from ttmodels.linear import penalty
from ttmodels.modes import balanced_modes, check_modes, frame_modes
from ttmodels.tensor_train import TTShape

Batch = tuple[np.ndarray, np.ndarray]

HIDDEN_SIZE = 64
RANK = 4


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
    """Run to the last epoch, from where `saved` stopped, else in the place of any run in `out`; the best accuracy.

    Raises:
        ValueError: clips that do not fit, or a checkpoint that was not made to resume from.
    """
    clips = read_clips(data, model_config.labels)
    for warning in clips.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    augment = Augmentation(
        swapped_labels(clips.labels, config.mirror_horizontal),
        swapped_labels(clips.labels, config.mirror_vertical),
        config.gain,
    )
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

    decoded = DecodedClips(clips, model_config.sampling, cache, max_bytes=cache_bytes)
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
    print(_summary(model, decoded), report, sep="\n", flush=True)

    steps_per_epoch = -(-len(train_data) // config.batch_size)
    num_steps = config.epochs * steps_per_epoch
    for epoch in range(progress.epoch, config.epochs):
        started = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        rng, chance = np.random.default_rng((config.seed, epoch)), np.random.default_rng((config.seed, epoch, 1))
        varied = (augment(*batch, chance) for batch in train_data.batches(config.batch_size, rng))
        model.train()
        train_loss = 0.0
        title = f"epoch {epoch + 1}/{config.epochs}"
        bar = tqdm(_read_ahead(varied), title, steps_per_epoch, unit="batch", disable=None)
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
              f"valid accuracy {valid.accuracy:.4f}", flush=True)  # fmt: skip
        if (valid.accuracy, -valid_loss) > (progress.best_accuracy, -progress.best_loss):
            progress.best_accuracy, progress.best_loss, progress.best_epoch = valid.accuracy, valid_loss, epoch + 1
            checkpoint.save(out / "best.safetensors", model, config, progress)
        checkpoint.save(out / "last.safetensors", model, config, progress, optimizer)

    best = checkpoint.load(out / "best.safetensors")
    _, valid = evaluate(best.model(), valid_data, "valid")
    print(f"best epoch {best.progress.best_epoch}: valid accuracy {valid.accuracy:.4f} ({report.baselines('valid')}); "
          f"{out / 'best.safetensors'}")  # fmt: skip
    print(confusion_table(model_config.labels, valid.confusion or ()))
    if len(test_data):
        _, test = evaluate(best.model(), test_data, "test")
        (out / "test.json").write_text(Figures(**dict(test), checkpoint_sha256=best.sha256).model_dump_json())
        print(f"test accuracy {test.accuracy:.4f} ({report.baselines('test')})")
        print(confusion_table(model_config.labels, test.confusion or ()))
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
        f"layers           {config.num_layers}, {'both directions' if config.bidirectional else 'forward'}",
    ]
    lines += [
        f"{name:<16} {count:>9,} parameters, {times:>10,.1f} times fewer than dense" for name, count, times in sizes
    ]
    return "\n".join(lines)


def _policy(sampling: Sampling) -> str:
    if sampling.policy == "rate":
        return f"{sampling.rate:g} a second"
    if sampling.policy == "windows":
        return f"windows of {sampling.window_length}, one every {sampling.window_stride} frames"
    return sampling.policy


def _new_run(labels: tuple[str, ...], given: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configurations that the options given ask for."""
    sampling = Sampling(**_named(Sampling.model_fields, given))
    input_modes = tuple(given.get("input_modes") or frame_modes(sampling.height, sampling.width))
    output_modes = tuple(
        given.get("output_modes") or reversed(balanced_modes(given.get("hidden", HIDDEN_SIZE), len(input_modes)))
    )
    check_modes(output_modes, given.get("hidden", math.prod(output_modes)), "output_modes for the hidden size")
    model_config = ModelConfig(
        labels=labels,
        input_modes=input_modes,
        output_modes=output_modes,
        tt_ranks=TTShape.make(input_modes, output_modes, given.get("rank", RANK)).tt_ranks,
        sampling=sampling,
        **_named(_options(ModelConfig), given),
    )
    return model_config, TrainConfig(**_named(_options(TrainConfig), given))


def _resumed_run(saved: Checkpoint, given: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configurations of the run to resume.

    Raises:
        ValueError: an option given beside --resume that differs; each is named, with both values.
    """
    model, config = saved.model_config, saved.train_config
    rank = given.get("rank", RANK)
    if TTShape.make(model.input_modes, model.output_modes, rank).tt_ranks != model.tt_ranks:
        rank = max(model.tt_ranks)
    has = {
        **{name: getattr(model, name) for name in ("input_modes", "output_modes", *_options(ModelConfig))},
        **{name: getattr(model.sampling, name) for name in Sampling.model_fields},
        **dataclasses.asdict(config),
        "hidden": model.hidden_size,
        "rank": rank,
    }
    more = {"epochs": given["epochs"]} if given.get("epochs", 0) > config.epochs else {}
    has |= more
    if differ := [name for name, value in _named(has, given).items() if value != has[name]]:
        asked, kept = (", ".join(_spelled(name, values[name]) for name in differ) for values in (given, has))
        raise ValueError(f"the run to resume has {kept}; got {asked}. Only --epochs may change, to more of them")
    return model, dataclasses.replace(config, **more)


def _named(names: Iterable[str], given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _options(config: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a configuration that are options of this command."""
    return {f.name: f for f in dataclasses.fields(config) if "help" in f.metadata}


def _spelled(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if value in (None, (), False):
        return f"no {option}"
    if value is True:
        return option
    return f"{option} {' '.join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))}"


def _form(default: object, choices: tuple[str, ...] | None = None, kind: type = str) -> dict[str, Any]:
    """How argparse reads an option, by its default."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+"}
    return {"type": kind if default is None else type(default), "choices": choices}


def _choices(name: str) -> tuple[str, ...]:
    """Of a field of `Sampling`."""
    return typing.get_args(Sampling.model_fields[name].annotation)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one sub-folder of videos per class, or a CSV list"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--resume", action="store_true", help="go on from OUT/last.safetensors")
    begun.add_argument("--overwrite", action="store_true", help="start anew where OUT holds a run already")
    parser.add_argument("--cache", type=Path, help="folder for decoded clips, which several runs may share (OUT/cache)")
    parser.add_argument(
        "--cache-bytes",
        type=positive,
        default=CACHE_BYTES,
        help=f"how large it may grow; clips for which there is no room are decoded anew each epoch ({CACHE_BYTES})",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (cuda where there is one, else cpu)")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of torch (usable cores)")

    def add(group: argparse._ArgumentGroup, name: str, default: object, meaning: str, **more: Any) -> None:
        """An option that is left out is not in the namespace, so that --resume can tell what was given."""
        shown = meaning if default in (None, ()) else f"{meaning} ({default})"
        how = _form(default) | {"default": argparse.SUPPRESS, "help": shown} | more
        group.add_argument(f"--{name.replace('_', '-')}", **how)

    model = parser.add_argument_group("model")
    sampling = Sampling()
    add(
        model,
        "policy",
        sampling.policy,
        "which frames: spread over the clip's time, at a --rate, the first, windows of frames in a row, or keyframes",
        choices=_choices("policy"),
    )
    add(model, "num_frames", sampling.num_frames, "frames taken of a clip")
    add(model, "rate", None, "frames a second, of --policy rate", type=float)
    add(model, "window_length", None, "frames in a window, of --policy windows", type=int)
    add(
        model,
        "window_stride",
        None,
        "frames from the start of a window to that of the next, of --policy windows",
        type=int,
    )
    add(model, "width", sampling.width, "of these frames, in pixels")
    add(model, "height", sampling.height, "of these frames, in pixels")
    add(model, "resize_filter", sampling.resize_filter, "how they are made smaller", choices=_choices("resize_filter"))
    add(model, "hidden", HIDDEN_SIZE, "units of the recurrence")
    add(model, "rank", RANK, "inner TT-rank")
    modes = {"type": int, "nargs": "+"}
    add(model, "input_modes", "two for the lines, two for the columns", "factors of HEIGHT * WIDTH * 3", **modes)
    add(model, "output_modes", "balanced", "factors of the hidden size", **modes)
    run = parser.add_argument_group("run")
    for group, config in ((model, ModelConfig), (run, TrainConfig)):
        for name, f in _options(config).items():
            add(
                group,
                name,
                f.default,
                f.metadata["help"],
                **_form(f.default, f.metadata["choices"], f.metadata["kind"]),
            )
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(options).items()}
    best, last = options.out / "best.safetensors", options.out / "last.safetensors"
    torch.set_num_threads(options.threads)
    device = _device(options.device)
    if options.resume:
        saved = checkpoint.load(last)
        model_config, config = _resumed_run(saved, given)
        if saved.progress.epoch >= config.epochs:
            done = saved.progress
            print(f"nothing left to do: all {config.epochs} epochs are done (more with --epochs); "
                  f"best epoch {done.best_epoch}: valid accuracy {done.best_accuracy:.4f}; {best}")  # fmt: skip
            return 0
    else:
        saved = None
        if not options.overwrite and (best.exists() or last.exists()):
            raise ValueError(f"{options.out} holds a run already: go on with --resume, or start anew with --overwrite")
        model_config, config = _new_run(read_clips(options.data).labels, given)
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

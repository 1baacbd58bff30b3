"""Train a clip classifier on a folder of videos, or a list: `python -m ttmodels.train --data FOLDER --out runs/NAME`.

FOLDER has one sub-folder of videos per class. A list is a CSV file with the columns path (relative to the list) and
label, and perhaps group, fold and split (train, valid or test). A share of each class is held back for validation,
whole groups at a time, unless the list's split names clips for it. Test clips are those of --fold, or of the list's
split, and play no part until the best epoch is chosen. With --valid-fraction 0 no clips are held back: the last epoch
is the one that is kept, and no temperature is fitted. With --task multi_label a clip of a list may have several
labels, or none.

OUT gets best.safetensors, of the epoch with the best validation accuracy (multi-label: mean average precision), among
equal ones that with the lowest validation loss; last.safetensors, to resume from; config.json; data.json, with the
clips of each class, leaks, files that could not be read and baselines; log.csv, with a line an epoch, and the same in
tensorboard/; test.json, where there are test clips; report/index.html; and the decoded clips. At the end a temperature
is fitted on validation, so that probabilities mean what they say, and put into best.safetensors.

--resume goes on from OUT/last.safetensors with the configuration in it. Options need not be repeated. Those that are
may not differ, but for --patience, and --epochs, which may be raised: the rest of the run then follows the schedule of
the new number.

`torchrun --nproc-per-node 2 -m ttmodels.train ...` shares each step's clips out over two processes, which together make
the steps of one (dropout aside, whose draws differ).
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
    require("torch", "safetensors", "sklearn", "matplotlib", "tensorboardX")

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ttmodels import checkpoint
from ttmodels import config as configs
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.conclusion import conclude
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.augment import Augmentation
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import CACHE_BYTES, Batch, DecodedClips, unreadable_clips
from ttmodels.data.features import FeatureClips
from ttmodels.data.report import data_report
from ttmodels.data.split import Split, split_clips
from ttmodels.distributed import Team, joined
from ttmodels.evaluate import predict
from ttmodels.linear import penalty
from ttmodels.logs import RunLog
from ttmodels.losses import ClipLoss
from ttmodels.options import make_parser, new_run, options_given, resumed_run
from ttmodels.predictions import SCORES
from ttmodels.schedule import ended, schedule
from ttmodels.summary import model_summary, run_summary

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    data: Path,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    cache: Path,
    cache_bytes: int = CACHE_BYTES,
    saved: Checkpoint | None = None,
    team: Team | None = None,
) -> float:
    """Run to the last epoch, from where `saved` stopped, else in the place of any run in `out`; the best score on
    validation, nan where no clips are held back for it.

    Args:
        team: the processes that train, all of which call this alike; one on the CPU without it.

    Raises:
        ValueError: clips that do not fit, or a checkpoint that was not made to resume from.
    """
    team = team or Team("cpu")
    clips = read_clips(data, model_config.labels, model_config.task)
    for warning in clips.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    augment = Augmentation.of(config, model_config.sampling.num_frames, clips.labels)
    split = split_clips(clips, config.valid_fraction, config.seed, config.fold)
    _check_choice(split, config)
    for warning in clips.take(split.valid).warnings if split.valid else ():
        print(f"warning: {warning} to choose the best epoch by", file=sys.stderr)
    if clips.folds and not split.test:
        print("warning: the list has folds, and without --fold none of its clips test", file=sys.stderr)

    torch.manual_seed(config.seed)
    model = ClipClassifier(model_config).to(team.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    device_type, autocast = torch.device(team.device).type, AUTOCAST[config.precision]
    scaler = torch.amp.GradScaler(device_type, enabled=config.precision == "fp16")
    progress = Progress(data_set=data.name)
    if saved is not None:
        model.load_state_dict(saved.model().state_dict())
        saved.restore_optimizer(optimizer)
        progress = saved.progress
        scaler.load_state_dict(progress.scaler)
    network = team.network(model)

    decoded = team.of_first(
        lambda: DecodedClips(
            clips, model_config.sampling, cache, max_bytes=cache_bytes, candidates=augment.candidates, change=augment
        )
    )
    parts = {name: decoded.take(part) for name, part in split._asdict().items()}
    for line in unreadable_clips(decoded):
        print(line, file=sys.stderr)
    source: DecodedClips | FeatureClips = decoded
    if (backbone := model.backbone) is not None:
        source = team.of_first(
            lambda: FeatureClips(
                decoded,
                backbone,
                cache,
                max_bytes=cache_bytes,
                varied=split.train,
                num_views=config.views if augment.changes else 1,
                change_name=f"{augment} {config.mirror_horizontal} {config.mirror_vertical}",
            )
        )
    train_data, valid_data, test_data = (source.take(part) for part in split)
    if not len(train_data) or (split.valid and not len(valid_data)):
        raise ValueError(f"{data}: {len(train_data)} clips to train on and {len(valid_data)} to choose by can be read")
    num_clips = {name: len(part) for name, part in parts.items() if len(part)}
    if saved is not None and num_clips != progress.num_clips:
        print(f"warning: the run to resume had {progress.num_clips} clips, and now there are {num_clips}: some that "
              "choose the best epoch may have been trained on", file=sys.stderr)  # fmt: skip
    progress.num_clips = num_clips
    if saved is None and isinstance(train_data, FeatureClips):
        model.standardise_by(*train_data.statistics())
    report = team.of_first(lambda: data_report(parts, decoded.unreadable, config.seed))
    if team.first:
        out.mkdir(parents=True, exist_ok=True)
        if saved is None:
            for path in ("best.safetensors", "last.safetensors", "test.json", "report/index.html"):
                (out / path).unlink(missing_ok=True)  # of a run that this one takes the place of
        (out / "config.json").write_text(_both_as_json(model_config, config))
        (out / "data.json").write_text(report.to_json())
    print(model_summary(model), run_summary(config, augment, decoded, clips.labels, team), report, sep="\n", flush=True)

    log = RunLog(out) if team.first else None
    if log is not None:
        log.write(progress.history)
    measure = SCORES[model_config.task]
    clip_loss = ClipLoss.of(config, train_data.clips.targets, len(clips.labels), team.device)
    steps_per_epoch = -(-len(train_data) // config.batch_size)
    num_steps = config.epochs * steps_per_epoch
    bar = tqdm(unit="batch", initial=progress.epoch * steps_per_epoch, total=num_steps, smoothing=0,
               disable=None if team.first else True)  # fmt: skip
    while not ended(config, progress):
        started, epoch = time.perf_counter(), progress.epoch
        torch.manual_seed(config.seed * 1_000_003 + epoch + (team.rank << 48))
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train_data))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        valid_losses = [entry["valid_loss"] for entry in progress.history if "valid_loss" in entry]
        network.train()
        train_loss = 0.0
        bar.set_description(f"epoch {epoch + 1}/{config.epochs}")
        coming = _read_ahead(train_data.varied(map(team.share, batches), (config.seed, epoch, 1)))
        for step, (batch, read) in enumerate(zip(batches, coming, strict=True), epoch * steps_per_epoch):
            frames, targets = (torch.from_numpy(part).to(team.device) for part in read)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(config, step / num_steps, valid_losses)
            with torch.autocast(device_type, autocast, enabled=autocast != torch.float32):
                logits = network(frames)
            loss = team.size * clip_loss(logits, targets).sum() / len(batch) + penalty(model)  # its mean is the batch's
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            train_loss += loss.item() * len(batch) / len(train_data)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()

        train_loss = team.sum(train_loss) / team.size
        found = {"train_loss": train_loss}
        line = f"epoch {epoch + 1}: train loss {train_loss:.4f}"
        if len(valid_data):
            valid = team.of_first(lambda: predict(model, valid_data, "valid"))
            found |= {"valid_loss": valid.loss(), "valid_score": valid.score}
            line += f", valid loss {valid.loss():.4f}, valid {measure} {valid.score:.4f}"
        rate, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - started
        progress.history.append({**found, "learning_rate": rate, "seconds": seconds})
        progress.epoch, progress.scaler = epoch + 1, scaler.state_dict()
        with bar.external_write_mode():
            print(line, flush=True)
        if progress.note_if_best() and team.first:
            checkpoint.save(out / "best.safetensors", model, config, progress)
        if log is not None:
            checkpoint.save(out / "last.safetensors", model, config, progress, optimizer)
            log.write(progress.history)
    bar.close()

    if log is None:
        return progress.best_score
    log.close()
    if progress.epoch < config.epochs:
        print(ended(config, progress))
    best = checkpoint.load(out / "best.safetensors").model().to(team.device)
    said = {name: predict(best, of, name) for name, of in (("valid", valid_data), ("test", test_data)) if len(of)}
    conclude(out, progress.history, said, parts, report)
    return progress.best_score


def _check_choice(split: Split, config: TrainConfig) -> None:
    """That there are clips for what is decided by them."""
    if split.valid:
        return
    for name, asked in (("--patience", config.patience > 0), ("--schedule plateau", config.schedule == "plateau")):
        if asked:
            raise ValueError(f"{name}: expected clips held back to decide by, got --valid-fraction 0")


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


@command
def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__ or "").parse_args(arguments)
    given = options_given(options)
    best, last = options.out / "best.safetensors", options.out / "last.safetensors"
    torch.set_num_threads(options.threads)
    if options.resume:
        saved = checkpoint.load(last)
        model_config, config = resumed_run(saved, given)
        why = ended(config, saved.progress)
        if why and (options.out / "report" / "index.html").exists():
            done, measure = saved.progress, SCORES[model_config.task]
            score = "" if math.isnan(done.best_score) else f": valid {measure} {done.best_score:.4f}"
            print(f"nothing left to do: {why}{'' if done.epoch < config.epochs else ' (more with --epochs)'}; "
                  f"best epoch {done.best_epoch}{score}; {best}")  # fmt: skip
            return 0
    else:
        saved = None
        if not options.overwrite and (best.exists() or last.exists()):
            raise ValueError(f"{options.out} holds a run already: go on with --resume, or start anew with --overwrite")
        model_config, config = new_run(read_clips(options.data, task=given.get("task", ModelConfig.task)).labels, given)
    try:
        with joined(options.device) as team:
            train(
                options.data,
                options.out,
                model_config,
                config,
                cache=options.cache or options.out / "cache",
                cache_bytes=options.cache_bytes,
                saved=saved,
                team=team,
            )
    except KeyboardInterrupt:
        if last.exists():
            hint = "--resume goes on after the last whole epoch"
        else:
            hint = "no epoch was done, the same command starts again; clips decoded so far are kept"
        raise KeyboardInterrupt(hint) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How good a model is on labelled clips, of a folder or a list: accuracy, loss, confusion; where a clip may have
several labels, mean average precision, and that of each label.

`python -m ttmodels.evaluate CHECKPOINT --data FOLDER` prints them and can write them for the model file's manifest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ttmodels.commandline import check_output, command, positive, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors")

import numpy as np
import torch
from tqdm import tqdm

from service.manifest import Metrics, Task
from service.video import Sampling
from ttmodels import checkpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import CACHE_BYTES, DecodedClips, unreadable_clips
from ttmodels.data.split import fold_of
from ttmodels.predictions import SCORES, Predictions


class Figures(Metrics):
    """What `--write` writes: figures, and of what they are."""

    checkpoint_sha256: str | None = None
    """Of the checkpoint; None in files by versions that did not say."""


@torch.inference_mode()
def predict(model: ClipClassifier, data: DecodedClips, title: str, batch_size: int = 64) -> Predictions:
    """What the model says of every clip, in their order; a bar called `title` tells how far it is."""
    model.eval()
    device = next(model.parameters()).device
    num_batches = -(-len(data) // batch_size)
    logits = [np.zeros((0, len(model.config.labels)), np.float32)]
    for frames, _ in tqdm(data.batches(batch_size), title, num_batches, leave=False, disable=None):
        logits.append(model(torch.from_numpy(frames).to(device)).logits.cpu().numpy())
    return Predictions(np.concatenate(logits), data.clips.targets, model.config.labels, model.config.task)


@contextmanager
def labelled_clips(
    root: Path,
    labels: Sequence[str],
    sampling: Sampling,
    cache: Path | None = None,
    *,
    task: Task = "single_label",
    cache_bytes: int = CACHE_BYTES,
    split: str = "test",
    fold: int | None = None,
) -> Iterator[DecodedClips]:
    """The clips of ROOT/LABEL/, or those of a list that are of `fold`, else of its `split`, else all; decoded to
    `cache` or to a folder that lasts as long as the block. What is left out is said on standard error.

    Raises:
        ValueError: no such folder or list, no clip of that split or fold, or none that could be read.
    """
    clips = read_clips(root, labels, task)
    if fold is not None:
        clips = clips.take(fold_of(clips, fold))
    elif clips.splits:
        clips = clips.take([i for i, of in enumerate(clips.splits) if of == split])
    for warning in clips.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        data = DecodedClips(clips, sampling, cache or Path(scratch), max_bytes=cache_bytes)
        for line in unreadable_clips(data):
            print(line, file=sys.stderr)
        if not len(data):
            raise ValueError(f"{root}: expected videos, found none that could be read among {len(clips)}")
        yield data


def label_table(said: Predictions) -> str:
    """How each label was told: the confusion of classes, or, with several labels, their average precisions."""
    if said.task == "single_label":
        return _confusion_table(said.labels, said.confusion)
    width = max(len(label) for label in said.labels)
    found = zip(said.labels, said.truth.sum(0), said.average_precisions, strict=True)
    lines = [f"{label:<{width}} {count:>6} {'-' if np.isnan(ap) else f'{ap:.4f}':>18}" for label, count, ap in found]
    return "\n".join([f"{'label':<{width}} {'clips':>6} {'average precision':>18}", *lines])


def _confusion_table(labels: Sequence[str], confusion: np.ndarray) -> str:
    """Rows: true class; columns: predicted class, by the labels' numbers. The first line says so."""
    width = max(len(label) for label in labels)
    cell = max(4, *(len(str(n)) + 1 for row in confusion for n in row))
    lines = [
        "rows: true class; columns: predicted class, by number",
        " " * (width + 3) + "".join(f"{i:>{cell}}" for i in range(len(labels))),
    ]
    for i, (label, row) in enumerate(zip(labels, confusion, strict=True)):
        lines.append(f"{i:>2} {label:<{width}}" + "".join(f"{n or '.':>{cell}}" for n in row))
    return "\n".join(lines)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file of ttmodels.train")
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder per class, or a CSV list")
    parser.add_argument("--fold", type=int, help="only the clips of this fold of the list")
    parser.add_argument(
        "--split",
        default="test",
        help="name of these clips in the figures, and in the list's column split (test)",
    )
    parser.add_argument("--cache", type=Path, help="folder for decoded clips, kept (a temporary one)")
    parser.add_argument(
        "--cache-bytes", type=positive, default=CACHE_BYTES, help=f"how large it may grow ({CACHE_BYTES})"
    )
    parser.add_argument("--write", type=Path, help="write the figures as JSON, for `exporters.to_onnx --metrics`")
    options = parser.parse_args(arguments)
    check_output("--write", options.write, options.checkpoint, options.data)
    saved = checkpoint.load(options.checkpoint)
    model = saved.model()
    with labelled_clips(
        options.data,
        model.config.labels,
        model.config.sampling,
        options.cache,
        task=model.config.task,
        cache_bytes=options.cache_bytes,
        split=options.split,
        fold=options.fold,
    ) as data:
        predictions = predict(model, data, options.split)
    metrics = predictions.metrics(options.split)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(Figures(**dict(metrics), checkpoint_sha256=saved.sha256).model_dump_json())
    print(f"{options.split}: {SCORES[predictions.task]} {predictions.score:.4f}, loss {metrics.loss:.4f}, "
          f"{metrics.num_clips} clips")  # fmt: skip
    print(label_table(predictions))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How good a model is on labelled clips, of a folder or a list: accuracy or mean AP, loss, calibration.

`python -m ttmodels.evaluate MODEL --data FOLDER` prints them and can write them for the model file's manifest. MODEL is
a checkpoint (.safetensors), run in torch, or a model file (.onnx), run in ONNX Runtime on the CPU. Loss and calibration
error are those of the probabilities that the service gives, at the temperature that MODEL holds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ttmodels.commandline import check_output, command, positive, require

if __name__ == "__main__":  # before the imports that need them
    require("torch", "safetensors")

import numpy as np
import torch
from tqdm import tqdm

from service.cores import usable_cores
from service.engine.provider import Choice
from service.engine.session import Resources, Session
from service.engine.signature import zeros
from service.errors import InvalidModel, NotForClips
from service.manifest import Manifest, Metrics, Task
from service.video import Sampling
from ttmodels import checkpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import CACHE_BYTES, DecodedClips, unreadable_clips
from ttmodels.data.features import FeatureClips
from ttmodels.data.split import fold_of
from ttmodels.predictions import SCORES, Predictions


class Figures(Metrics):
    """What `--write` writes: figures, and of what they are."""

    checkpoint_sha256: str | None = None
    """Of the checkpoint; None in files by versions that did not say."""


def predict(model: ClipClassifier, data: DecodedClips | FeatureClips, title: str, batch_size: int = 64) -> Predictions:
    """What the model says of every clip, in their order; a bar called `title` tells how far it is."""
    device = next(model.parameters()).device

    @torch.inference_mode()
    def logits(frames: np.ndarray) -> np.ndarray:
        return np.asarray(model(torch.from_numpy(frames).to(device)).logits.cpu().numpy())

    model.eval()
    return Predictions(_logits_of(data, logits, title, batch_size), data.clips.targets, model.config.labels,
                       model.config.task)  # fmt: skip


def predict_in_onnx(session: Session, data: DecodedClips, title: str, batch_size: int = 64) -> Predictions:
    """The same of a model file. One that takes clips in pieces gets them whole."""
    manifest = session.clip_manifest()

    def logits(frames: np.ndarray) -> np.ndarray:
        batch, time = frames.shape[:2]
        whole = {"frames": frames, "lengths": np.full(batch, time, np.int32)}
        with session.place():
            return session.run_tensors(zeros(session.signature.inputs, batch=batch, time=time) | whole)["logits"]

    return Predictions(_logits_of(data, logits, title, batch_size), data.clips.targets, manifest.labels, manifest.task)


def _logits_of(
    data: DecodedClips | FeatureClips, logits: Callable[[np.ndarray], np.ndarray], title: str, batch_size: int
) -> np.ndarray:
    num_batches = -(-len(data) // batch_size)
    said = [np.zeros((0, len(data.clips.labels)), np.float32)]
    for frames, _ in tqdm(data.batches(batch_size), title, num_batches, leave=False, disable=None):
        said.append(logits(frames))
    return np.concatenate(said)


class Opened(NamedTuple):
    """A model to evaluate, of whichever kind of file."""

    predict: Callable[[DecodedClips, str], Predictions]
    about: ModelConfig | Manifest
    """Its labels, its task, and the sampling of its clips."""
    temperature: float
    checkpoint_sha256: str


def open_model(path: Path) -> Opened:
    """A checkpoint, or a model file that takes clips.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else; says what was expected and what came.
    """
    if path.suffix != ".onnx":
        saved = checkpoint.load(path)
        return Opened(partial(predict, saved.model()), saved.model_config, saved.progress.temperature, saved.sha256)
    if not path.is_file():
        raise FileNotFoundError(f"expected a model file, found nothing at {path}")
    try:
        session = Session(path, Choice("cpu"), Resources(usable_cores()))
        manifest = session.clip_manifest()
    except (InvalidModel, NotForClips) as error:
        raise ValueError(str(error)) from error
    return Opened(partial(predict_in_onnx, session), manifest, manifest.temperature, manifest.checkpoint_sha256)


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


def in_words(said: Predictions, temperature: float) -> str:
    """Score, loss and calibration error in a line; these two at the temperature 1 too, where that is another."""

    def at(temperature: float) -> str:
        error = said.reliability(temperature).error
        return f"loss {said.loss(temperature):.4f}, calibration error {error:.4f}"

    scores = f"{SCORES[said.task]} {said.score:.4f}"
    if said.task == "multi_label":
        scores += f", every label right {said.accuracy:.4f}"
    before = f" (without the temperature {temperature:.3g}: {at(1.0)})" if temperature != 1 else ""
    return f"{scores}, {at(temperature)}{before}, {len(said)} clips"


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
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a .safetensors file of ttmodels.train, or an .onnx of exporters.to_onnx",
    )
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
    check_output("--write", options.write, options.model, options.data)
    model = open_model(options.model)
    with labelled_clips(
        options.data,
        model.about.labels,
        model.about.sampling,
        options.cache,
        task=model.about.task,
        cache_bytes=options.cache_bytes,
        split=options.split,
        fold=options.fold,
    ) as data:
        said = model.predict(data, options.split)
    if options.write:
        metrics = said.metrics(options.split, model.temperature)
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(Figures(**dict(metrics), checkpoint_sha256=model.checkpoint_sha256).model_dump_json())
    print(f"{options.split}: {in_words(said, model.temperature)}")
    print(label_table(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())

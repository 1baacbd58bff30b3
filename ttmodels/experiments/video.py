"""What experiments on video share: every run is one of `ttmodels.train`, with options that a user would give it."""

from __future__ import annotations

import functools
import json
import math
import shlex
import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ttmodels import checkpoint
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.data.clips import read_clips
from ttmodels.data.encode import write_video
from ttmodels.data.lists import write_list
from ttmodels.data.published import DATA_SETS
from ttmodels.distributed import Team
from ttmodels.experiments.study import Outcome, Study, read_outcome, write_outcome
from ttmodels.options import make_parser, new_run, options_given
from ttmodels.train import train

Tree = Mapping[str, int | str]
"""The files of a folder by path: a made clip of a class, or a text."""

CODECS = {".avi": "mpeg4", ".mpg": "mpeg1video", ".mp4": "libx264"}


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    options: str
    """Of `ttmodels.train`, beside those that all rows have."""
    published: str = "-"
    protocols: tuple[str, ...] = ()
    """Of `ttmodels.data.lists`, each with all its folds; the data set's first, where none is named."""


class VideoExperiment(Study):
    """Models trained on a published set of clips, each on all folds of its protocols."""

    data_set: ClassVar[str]
    """As `ttmodels.data.lists` calls it."""
    where: ClassVar[str]
    """What folder is expected, and where it is from."""
    num_labels: ClassVar[int]
    options: ClassVar[str]
    """Of `ttmodels.train`, for all rows."""
    rows: ClassVar[Mapping[str, Row]]
    measure: ClassVar[str] = "accuracy"
    """What the table has of the figures that `ttmodels.train` gives of test clips, or "mean AP"."""

    def __init_subclass__(cls) -> None:
        cls.published = {label: row.published for label, row in cls.rows.items()}

    @abstractmethod
    def made(self) -> Tree:
        """A small folder in the publisher's layout, for --quick."""

    @property
    def figures(self) -> tuple[str, ...]:
        return self.measure, "± over folds", "metadata only", "majority"

    def settings(self, label: str, *, quick: bool = False) -> dict[str, Any]:
        return {"options": self._options(label), "protocols": list(self._protocols(label)), "quick": quick}

    def num_parameters(self, label: str) -> int:
        labels = tuple(map(str, range(self.num_labels)))
        return _num_parameters(self._configs(label, labels)[0])

    def num_epochs(self, label: str) -> int:
        return self._configs(label, ("0", "1"))[1].epochs

    def outcome(self, label: str, seed: int, data_folder: Path | None, kept: Path, *, quick: bool) -> Outcome:
        if quick:
            data_folder = write_tree(self.made(), kept.parent / "made")
        runs = []
        for protocol in self._protocols(label):
            data = self._list(data_folder, protocol, kept.parent / f"{protocol}.csv")
            task = self._given(label).get("task", "single_label")
            clips = read_clips(data, task=task)
            folds: list[int | None] = [*sorted(set(clips.folds))] or [None]
            for fold in folds[: 1 if quick else None]:
                out = kept / (protocol if fold is None else f"{protocol}-fold{fold}")
                configs = self._configs(label, clips.labels, quick=quick, seed=seed, fold=fold)
                settings = {**self.settings(label, quick=quick), "seed": seed, "fold": fold}
                runs.append(self._trained(data, out, *configs, settings))
        return self._over_runs(runs)

    def _options(self, label: str) -> str:
        return f"{self.options} {self.rows[label].options}"

    def _protocols(self, label: str) -> Sequence[str]:
        return self.rows[label].protocols or DATA_SETS[self.data_set].protocols[:1]

    def _given(self, label: str) -> dict[str, Any]:
        """A row's options as `python -m ttmodels.train` reads them."""
        words = ["--data", "", "--out", "", *shlex.split(self._options(label))]
        return options_given(make_parser("").parse_args(words))

    def _configs(
        self, label: str, labels: tuple[str, ...], *, quick: bool = False, **run: int | None
    ) -> tuple[ModelConfig, TrainConfig]:
        given = {**self._given(label), **run}
        if quick:
            num_modes = len(new_run(labels, given)[0].output_modes)
            given |= {
                "hidden": 2**num_modes,
                "output_modes": (2,) * num_modes,
                "epochs": 2,
                "num_frames": 4,
                "views": 1,
            }
        return new_run(labels, given)

    def _list(self, folder: Path | None, protocol: str, file: Path) -> Path:
        try:
            clips = DATA_SETS[self.data_set].read(folder, protocol) if folder else []
        except FileNotFoundError:
            clips = []
        if not clips:
            raise FileNotFoundError(f"{self.name}: expected {self.where}, found none in {folder or 'no folder'}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_list(clips, file)
        return file

    def _trained(
        self, data: Path, out: Path, model_config: ModelConfig, config: TrainConfig, settings: dict[str, Any]
    ) -> Outcome:
        """One run of `ttmodels.train`, gone on with where it was interrupted."""
        path, last = out / "run.json", out / "last.safetensors"
        names = self.measure, "metadata only", "majority", "clips"
        if (done := read_outcome(path, settings, names)) is not None:
            return done
        saved = checkpoint.load(last) if last.exists() else None
        if saved is not None and (saved.model_config, saved.train_config) != (model_config, config):
            saved = None
        out.mkdir(parents=True, exist_ok=True)
        with (out / "log.txt").open("a" if saved else "w", encoding="utf-8") as log, redirect_stdout(log):
            team = Team("cuda" if torch.cuda.is_available() else "cpu")
            train(data, out, model_config, config, cache=out.parents[2] / "cache", saved=saved, team=team)
        test, report = (json.loads((out / name).read_text()) for name in ("test.json", "data.json"))
        figure = test[self.measure.lower().replace(" ", "_")]
        values = figure, report["metadata_only"]["test"], report["majority"]["test"], test["num_clips"]
        saved = checkpoint.load(last)
        outcome = Outcome(
            dict(zip(names, values, strict=True)),
            saved.model().num_parameters(),
            saved.progress.best_epoch,
            saved.progress.epoch,
            statistics.fmean(epoch["seconds"] for epoch in saved.progress.history),
        )
        write_outcome(path, settings, outcome)
        last.unlink()  # of a dense model it is large
        return outcome

    def _over_runs(self, runs: Sequence[Outcome]) -> Outcome:
        """Figures of all their test clips together; the deviation is that between the runs, none where there is one."""
        clips = [run.figures["clips"] for run in runs]
        of_runs = {name: [run.figures[name] for run in runs] for name in runs[0].figures}
        figures = {name: float(np.average(values, weights=clips)) for name, values in of_runs.items()}
        figures["± over folds"] = statistics.stdev(of_runs[self.measure]) if len(runs) > 1 else math.nan
        figures = {name: figures[name] for name in self.figures}
        return Outcome(
            figures,
            runs[0].num_parameters,
            round(statistics.fmean(run.best_epoch for run in runs)),
            round(statistics.fmean(run.num_epochs for run in runs)),
            statistics.fmean(run.epoch_s for run in runs),
        )


@functools.cache
def _num_parameters(config: ModelConfig) -> int:
    return ClipClassifier(config).num_parameters()


def dense(cell: str, inputs: int, hidden: int) -> str:
    """Options of a recurrence whose input-to-hidden matrix is a train of one core: a plain matrix."""
    return f"--cell {cell} --input-modes {inputs} --output-modes {hidden} --rank 1"


def write_tree(tree: Tree, root: Path) -> Path:
    """Write a folder. Its clips are noise over a bar, the further right the higher the class, 12 frames of 64x48."""
    for number, (name, content) in enumerate(tree.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif not path.exists():
            frames = np.random.default_rng(number).integers(0, 64, (12, 48, 64, 3), np.uint8)
            frames[:, :, 10 * content : 10 * content + 8] += 128
            write_video(path, frames, codec=CODECS[path.suffix])
    return root

"""What to know of a run's data before believing its result: classes, leaks, and what is right without looking.

A file on both sides of a split is a leak. The majority class (multi-label: how frequent each label is), and a forest
that sees only the size, length and rate of a video, are baselines: a model that watches has to be better than both.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np

from service.manifest import Task
from ttmodels.data.decoded import DecodedClips
from ttmodels.predictions import Predictions

Scores = dict[str, float]
"""By part, valid and test: accuracy, or mean average precision where a clip may have several labels."""


@dataclass(frozen=True)
class DataReport:
    """The parts of a run's data, and the baselines on them."""

    task: Task
    num_clips: dict[str, int]
    """That could be read, by part."""
    counts: dict[str, dict[str, int]]
    """Those of each class, by part."""
    groups: dict[str, int]
    """By part; a clip without a group is its own."""
    unreadable: dict[str, str]
    """Reason by path."""
    leaks: list[dict[str, list[str]]]
    """Equal files: their paths by part, each of at least two parts."""
    majority: Scores
    """Of the class most frequent among those to train on; multi-label, of the labels' frequencies there."""
    metadata_only: Scores
    """Of a random forest on width, height, duration, frame rate and number of frames."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def most(self) -> str:
        """What the baseline `majority` says."""
        return "majority class" if self.task == "single_label" else "label frequencies"

    def baselines(self, part: str) -> str:
        """The figures that stand beside a result on this part."""
        return f"{self.most} {self.majority[part]:.4f}, metadata only {self.metadata_only[part]:.4f}"

    def __str__(self) -> str:
        parts = list(self.counts)
        labels = list(self.counts[parts[0]])
        width = max(16, *(len(label) for label in labels))
        lines = [f"{'clips':<{width}}" + "".join(f"{part:>8}" for part in parts)]
        lines += [f"{label:<{width}}" + "".join(f"{self.counts[p][label]:>8}" for p in parts) for label in labels]
        lines.append(f"{'all':<{width}}" + "".join(f"{self.num_clips[part]:>8}" for part in parts))
        lines.append(f"{'groups':<{width}}" + "".join(f"{self.groups[part]:>8}" for part in parts))
        if not self.leaks:
            lines.append(f"{'leaks':<{width}} none: no equal files in two parts")
        for leak in self.leaks:
            files = "; ".join(f"{part} {', '.join(paths)}" for part, paths in leak.items())
            lines.append(f"{'leak':<{width}} equal files: {files}")
        lines += [f"{f'baselines, {part}':<{width}} {self.baselines(part)}" for part in self.majority]
        return "\n".join(lines)


def data_report(parts: Mapping[str, DecodedClips], unreadable: Mapping[Path, str], seed: int) -> DataReport:
    """Look at the parts of a run's data, `train` among them; parts without clips are left out."""
    parts = {name: data for name, data in parts.items() if len(data)}
    others = {name: data for name, data in parts.items() if name != "train"}
    train = parts["train"]
    frequencies = np.array(train.clips.counts()) / len(train)
    return DataReport(
        train.clips.task,
        {name: len(data) for name, data in parts.items()},
        {name: dict(zip(data.clips.labels, data.clips.counts(), strict=True)) for name, data in parts.items()},
        {name: _num_groups(data) for name, data in parts.items()},
        {str(path): reason for path, reason in unreadable.items()},
        equal_files({name: data.clips.paths for name, data in parts.items()}),
        {name: _score(np.tile(frequencies, (len(data), 1)), data) for name, data in others.items()},
        _metadata_only(train, others, seed),
    )


def equal_files(parts: Mapping[str, tuple[Path, ...]]) -> list[dict[str, list[str]]]:
    """The paths by part of each content that is in more than one part. Only files of one size are read."""
    of_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for part, paths in parts.items():
        for path in paths:
            of_size[path.stat().st_size].append((part, path))
    of_content: dict[bytes, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for files in of_size.values():
        if len({part for part, _ in files}) < 2:
            continue
        for part, path in files:
            with path.open("rb") as file:
                of_content[hashlib.file_digest(file, "sha256").digest()][part].append(str(path))
    return [dict(found) for found in of_content.values() if len(found) > 1]


def _num_groups(data: DecodedClips) -> int:
    groups = data.clips.groups or ("",) * len(data)
    return len({group or i for i, group in enumerate(groups)})


def _metadata_only(train: DecodedClips, others: Mapping[str, DecodedClips], seed: int) -> Scores:
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    forest = RandomForestClassifier(200, random_state=seed).fit(_features(train), train.clips.targets)

    def chances(data: DecodedClips) -> np.ndarray:
        """[clips, classes]."""
        found = forest.predict_proba(_features(data))
        if train.clips.task == "multi_label":  # a label that all clips have, or none, has one column and not two
            return np.stack([of_label @ values for of_label, values in zip(found, forest.classes_, strict=True)], 1)
        of_all = np.zeros((len(data), len(train.clips.labels)))
        of_all[:, forest.classes_] = found
        return of_all

    return {name: _score(chances(data), data) for name, data in others.items()}


def _score(chances: np.ndarray, data: DecodedClips) -> float:
    """Of what is said of each clip, [clips, classes]; its order alone counts."""
    return Predictions(chances, data.clips.targets, data.clips.labels, data.clips.task).score


def _features(data: DecodedClips) -> np.ndarray:
    return np.array([astuple(facts) for facts in data.facts], np.float64)

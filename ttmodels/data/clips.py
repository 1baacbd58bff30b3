"""Labelled clips: a folder with one sub-folder of videos per class, or a CSV list.

A list has a header with `path` and `label`, and may have `group`, `fold` and `split`; other columns are left alone.
Paths are relative to the list. Clips of one group (a person, a scene, a recording) belong on one side of every split.
Where the task is multi-label, a clip of a list may have several labels, `Eat|Kiss`, or none.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.manifest import Task

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .gif .ogv .ogg .wmv .asf .3gp .y4m".split()
)
SPLITS = ("train", "valid", "test")
LABEL_SEPARATOR = "|"
"""Between the labels of a clip that has several."""


@dataclass(frozen=True)
class ClipList:
    """Paths and labels of clips, in a fixed order."""

    root: Path
    """The folder, or the list."""
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: np.ndarray
    """int64 [clips], the class; where the task is multi-label uint8 [clips, classes], 1 where the label holds."""
    groups: tuple[str, ...] = ()
    """The group of each clip, "" for one of its own; empty where no clip has one."""
    folds: tuple[int, ...] = ()
    splits: tuple[str, ...] = ()
    """Of each clip, one of SPLITS; empty where the list does not say."""
    left_out: tuple[str, ...] = ()
    """What is not among the clips, and why."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int] | np.ndarray) -> ClipList:
        columns: dict[str, Any] = {
            name: tuple(column[i] for i in indices)
            for name in ("paths", "groups", "folds", "splits")
            if (column := getattr(self, name))
        }
        return replace(self, targets=self.targets[list(indices)], left_out=(), **columns)

    @property
    def task(self) -> Task:
        return "single_label" if self.targets.ndim == 1 else "multi_label"

    def holds(self) -> np.ndarray:
        """bool [clips, classes]: whether the label holds for the clip."""
        if self.task == "multi_label":
            return np.asarray(self.targets != 0)
        return np.asarray(self.targets[:, None] == np.arange(len(self.labels)))

    def counts(self) -> list[int]:
        """Clips of each class; one that has several labels counts for each."""
        return [int(count) for count in self.holds().sum(0)]

    @property
    def warnings(self) -> list[str]:
        """What a person may not expect of these clips."""
        empty = [label for label, count in zip(self.labels, self.counts(), strict=True) if not count]
        return [*self.left_out, *([f"no clips of {', '.join(empty)}"] if empty else [])]


def read_clips(source: Path, labels: Sequence[str] | None = None, task: Task = "single_label") -> ClipList:
    """The clips of a folder, or of a CSV list.

    Args:
        labels: the order of the classes; their names, sorted, without it.

    Raises:
        ValueError: fewer than two classes, a class that is none of `labels`, no clips; a class' folder without a clip;
            a list that lacks a column or a value; a clip of several labels, or of none, that may have one; a folder
            where they may have several.
    """
    if source.is_file():
        return _read_list(source, labels, task)
    if source.is_dir():
        if task == "multi_label":
            raise ValueError(
                f"--task multi_label: expected a CSV list, whose clips may have several labels, got {source}"
            )
        return _read_folder(source, labels)
    raise ValueError(f"expected a folder with one sub-folder per class, or a CSV list, found none at {source}")


def _read_folder(root: Path, labels: Sequence[str] | None) -> ClipList:
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = tuple(labels or found)
    if unknown := sorted(set(found) - set(names)):
        raise ValueError(f"{root}: expected sub-folders named {list(names)}, found also {unknown}")
    if len(names) < 2:
        raise ValueError(f"{root}: expected a sub-folder for each of at least two classes, found {found}")
    paths: list[Path] = []
    targets: list[int] = []
    others: list[Path] = []
    for target, name in enumerate(names):
        files = sorted(p for p in (root / name).rglob("*") if p.is_file() and not p.name.startswith("."))
        clips = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
        others += [p for p in files if p.suffix.lower() not in VIDEO_SUFFIXES]
        if not clips and labels is None:
            raise ValueError(f"{root / name}: expected videos ({' '.join(sorted(VIDEO_SUFFIXES))}), found none")
        paths += clips
        targets += [target] * len(clips)
    if not paths:
        raise ValueError(f"{root}: expected videos, found none")
    left_out = []
    if others:
        suffixes = " ".join(sorted({path.suffix.lower() or path.name for path in others}))
        left_out.append(
            f"left out {len(others)} files by their suffix ({suffixes}), {others[0]} among them; "
            f"videos end in {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return ClipList(root, names, tuple(paths), np.array(targets, np.int64), left_out=tuple(left_out))


def _read_list(source: Path, labels: Sequence[str] | None, task: Task) -> ClipList:
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if missing := {"path", "label"} - columns:
            raise ValueError(f"{source}: expected a header with path and label, found no {', '.join(sorted(missing))}")
        rows = [(reader.line_num, row) for row in reader]
    for line, row in rows:
        if fault := _fault(row, columns, task):
            raise ValueError(f"{source}, line {line}: {fault}")
    used = [row for _, row in rows if "split" not in columns or row["split"]]
    paths = [row["path"] for row in used]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{source}: expected each path once, found {max(paths, key=paths.count)} again")
    labels_of = [_labels(row) for row in used]
    found = sorted({label for of_clip in labels_of for label in of_clip})
    names = tuple(labels or found)
    if unknown := sorted(set(found) - set(names)):
        raise ValueError(f"{source}: expected labels of {list(names)}, found also {unknown}")
    if len(names) < 2 or not used:
        raise ValueError(f"{source}: expected clips of at least two classes, found {found}")
    left_out = [f"left out {len(rows) - len(used)} clips whose split is empty"] if len(used) < len(rows) else []
    return ClipList(
        source,
        names,
        tuple(source.parent / path for path in paths),
        _targets(labels_of, names, task),
        tuple(row["group"] for row in used) if "group" in columns else (),
        tuple(int(row["fold"]) for row in used) if "fold" in columns else (),
        tuple(row["split"] for row in used) if "split" in columns else (),
        tuple(left_out),
    )


def _labels(row: dict[str, str]) -> list[str]:
    return row["label"].split(LABEL_SEPARATOR) if row["label"] else []


def _targets(labels_of: Sequence[Sequence[str]], names: Sequence[str], task: Task) -> np.ndarray:
    """As ClipList has them."""
    if task == "single_label":
        return np.array([names.index(label) for (label,) in labels_of], np.int64)
    return np.array([[name in of_clip for name in names] for of_clip in labels_of], np.uint8)


def _fault(row: dict[str, str], columns: set[str], task: Task) -> str:
    """What does not fit of a list's row; "" where all does."""
    if None in row or None in row.values():
        return "expected a value in every column of the header, found more or fewer"
    labels = _labels(row)
    if not row["path"] or not (labels or task == "multi_label"):
        return f"expected a path and a label, got {row['path']!r} and {row['label']!r}"
    if len(labels) > 1 and task == "single_label":
        return f"expected one label, got {row['label']}: several are for --task multi_label"
    if "" in labels or len(set(labels)) < len(labels):
        return f"expected labels that differ, {LABEL_SEPARATOR!r} between two, got {row['label']!r}"
    if "fold" in columns and not row["fold"].isdecimal():
        return f"fold: expected a whole number, got {row['fold']!r}"
    if "split" in columns and row["split"] not in (*SPLITS, ""):
        return f"split: expected {', '.join(SPLITS)} or nothing, got {row['split']!r}"
    return ""

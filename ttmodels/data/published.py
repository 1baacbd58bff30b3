"""Video data sets as their publishers lay them out: what is in a folder, with groups, folds and splits.

Each reader takes the unpacked folder and a protocol, and gives the clips in a fixed order. Nothing is decoded. A
publisher's own split is kept as it is; where it tears a group of ours apart, each side's clips are a group.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

PAPER_SEED = 11111986
"""Of the random folds in the experiments' code that Yang, Krompass and Tresp published (ICML 2017)."""
NUM_FOLDS = 5


@dataclass(frozen=True)
class Listed:
    """A clip of a list."""

    path: Path
    labels: tuple[str, ...]
    group: str = ""
    fold: int | None = None
    split: str | None = None


def ucf11(root: Path, protocol: str) -> list[Listed]:
    """UCF11, "YouTube Action": CLASS/v_NAME_GG/v_NAME_GG_CC.mpg, 25 groups a class, beside CLASS/Annotation/."""
    clips = [
        Listed(path, (path.parent.parent.name,), path.parent.name)
        for path in sorted(root.glob("*/v_*_[0-9][0-9]/*"))
        if path.suffix in (".mpg", ".avi")
    ]
    if protocol == "random":
        return _random_folds(clips)
    return [replace(clip, fold=int(clip.group[-2:]) % NUM_FOLDS) for clip in clips]


HOLLYWOOD2_ACTIONS = (
    "AnswerPhone DriveCar Eat FightPerson GetOutCar HandShake HugPerson Kiss Run SitDown SitUp StandUp".split()
)


def hollywood2(root: Path, protocol: str) -> list[Listed]:
    """Hollywood2 actions: AVIClips/NAME.avi, ClipSets/ACTION_{train,test}.txt with lines `NAME 1` or `NAME -1`."""
    clips: list[Listed] = []
    for split in ("train", "test"):
        actions: dict[str, list[str]] = {}
        for action in HOLLYWOOD2_ACTIONS:
            for name, sign in _fields(root / "ClipSets" / f"{action}_{split}.txt", 2):
                actions.setdefault(name, []).extend([action] if int(sign) > 0 else [])
        clips += [
            Listed(root / "AVIClips" / f"{name}.avi", tuple(found), split=split)
            for name, found in sorted(actions.items())
            if found
        ]
    return clips


def youtube_celebrities(root: Path, protocol: str) -> list[Listed]:
    """YouTube Celebrities: NNNN_SS_CCC_first_last.avi: a running number, the person's video, the clip of it, who."""
    named = re.compile(r"\d{4}_(\d{2})_\d{3}_(.+)\.avi")
    clips = [
        Listed(path, (found[2],), f"{found[2]} {found[1]}")
        for path in sorted(root.iterdir())
        if (found := named.fullmatch(path.name))
    ]
    return _random_folds(clips) if protocol == "random" else _group_folds(clips)


def hmdb51(root: Path, protocol: str) -> list[Listed]:
    """HMDB51: CLASS/NAME.avi, perhaps in hmdb51_org/, and testTrainMulti_7030_splits/CLASS_test_splitN.txt with lines
    `NAME.avi 0`, 1 (train) or 2 (test). Of those that are 0, none are listed. The group is the name before the class:
    that of the source video."""
    number = protocol.removeprefix("split")
    ends = f"_test_split{number}.txt"
    clips: list[Listed] = []
    for file in sorted((root / "testTrainMulti_7030_splits").glob(f"*{ends}")):
        label = file.name.removesuffix(ends)
        folder = next((f for f in (root / label, root / "hmdb51_org" / label) if f.is_dir()), root / label)
        clips += [
            Listed(folder / name, (label,), name.split(f"_{label}_")[0], split={"1": "train", "2": "test"}[use])
            for name, use in sorted(_fields(file, 2))
            if use in ("1", "2")
        ]
    return _whole_groups(clips)


def ut_interaction(root: Path, protocol: str) -> list[Listed]:
    """UT-Interaction, segmented: CLASS/N_SEQUENCE_LABEL.avi and clips.csv with path, label, set, sequence and fold."""
    across = protocol == "set1-to-set2"
    return [
        Listed(
            root / row["path"],
            (row["label"],),
            f"sequence {row['sequence']}",
            None if across else int(row["fold"]),
            {"1": "train", "2": "test"}[row["set"]] if across else None,
        )
        for row in _table(root)
    ]


def fights(root: Path, protocol: str) -> list[Listed]:
    """Surveillance fights: fight/, noFight/ and clips.csv with path, label, group (the source video) and fold."""
    return [Listed(root / r["path"], (r["label"],), f"video {r['group']}", int(r["fold"])) for r in _table(root)]


@dataclass(frozen=True)
class DataSet:
    """How a published set is read."""

    read: Callable[[Path, str], list[Listed]]
    protocols: tuple[str, ...]
    """Ways to split it, the first unless asked."""


DATA_SETS = {
    "ucf11": DataSet(ucf11, ("groups", "random")),
    "hollywood2": DataSet(hollywood2, ("official",)),
    "youtube-celebrities": DataSet(youtube_celebrities, ("groups", "random")),
    "hmdb51": DataSet(hmdb51, ("split1", "split2", "split3")),
    "ut-interaction": DataSet(ut_interaction, ("sequences", "set1-to-set2")),
    "fights": DataSet(fights, ("videos",)),
}


def _random_folds(clips: Sequence[Listed]) -> list[Listed]:
    """The folds of the paper's code: clips in alphabetical order, shuffled, cut in five. Groups are torn apart, so the
    list names none."""
    order = np.random.RandomState(PAPER_SEED).permutation(len(clips))
    folds = {int(i): fold for fold, part in enumerate(np.array_split(order, NUM_FOLDS)) for i in part}
    return [replace(clip, group="", fold=folds[i]) for i, clip in enumerate(clips)]


def _group_folds(clips: Sequence[Listed]) -> list[Listed]:
    """Five folds of whole groups: those of each class in turn, each to the fold with the fewest clips of the class."""
    sizes: dict[tuple[str, ...], dict[str, int]] = {}
    for clip in clips:
        groups = sizes.setdefault(clip.labels, {})
        groups[clip.group] = groups.get(clip.group, 0) + 1
    fold_of: dict[str, int] = {}
    overall = [0] * NUM_FOLDS
    for groups in sizes.values():
        here = [0] * NUM_FOLDS
        for group, size in sorted(groups.items(), key=lambda item: (-item[1], item[0])):
            fold = min(range(NUM_FOLDS), key=lambda f: (here[f], overall[f], f))
            fold_of[group] = fold
            here[fold] += size
            overall[fold] += size
    return [replace(clip, fold=fold_of[clip.group]) for clip in clips]


def _whole_groups(clips: Sequence[Listed]) -> list[Listed]:
    sides: dict[str, set[str | None]] = {}
    for clip in clips:
        sides.setdefault(clip.group, set()).add(clip.split)
    return [replace(c, group=f"{c.group} ({c.split})") if len(sides[c.group]) > 1 else c for c in clips]


def _fields(file: Path, count: int) -> list[list[str]]:
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    for row in rows:
        if len(row) != count:
            raise ValueError(f"{file}: expected {count} words a line, got {' '.join(row)!r}")
    return rows


def _table(root: Path) -> list[dict[str, str]]:
    with (root / "clips.csv").open(encoding="utf-8", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: row["path"])

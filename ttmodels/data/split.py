"""Which clips are trained on, which choose the best epoch, and which test. Groups are never torn apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ttmodels.data.clips import ClipList


class Split(NamedTuple):
    """Indices into a ClipList, each sorted; no clip is in two."""

    train: list[int]
    valid: list[int]
    test: list[int]
    """Empty where neither a fold nor the list names any."""


def split_clips(clips: ClipList, fraction: float, seed: int, fold: int | None = None) -> Split:
    """The parts of a run.

    The clips of `fold` test, else those that the list's split calls so. Where the list names none to validate with, a
    `fraction` of each class of the others is drawn by `seed`, whole groups at a time; none at 0.

    Raises:
        ValueError: a fold that the list does not have, a list that tears a group apart, no clips to train on, or no
            class that can be on both sides.
    """
    if fold is not None:
        test = fold_of(clips, fold)
        _check_whole(clips, clips.folds, "fold")
    elif clips.splits:
        _check_whole(clips, clips.splits, "split")
        test = [i for i, split in enumerate(clips.splits) if split == "test"]
    else:
        test = []
    rest = sorted(set(range(len(clips))) - set(test))
    valid = [i for i in rest if clips.splits[i] == "valid"] if clips.splits and fold is None else []
    if not valid and rest and fraction:
        valid = _hold_out(clips, rest, fraction, seed)
    train = sorted(set(rest) - set(valid))
    if not train:
        raise ValueError(f"{clips.root}: expected clips to train on, found {len(test)} that test and none beside them")
    return Split(train, valid, test)


def fold_of(clips: ClipList, fold: int) -> list[int]:
    """The clips of a fold.

    Raises:
        ValueError: there are none.
    """
    if not clips.folds:
        raise ValueError(f"--fold {fold}: expected a list with a column fold, found none in {clips.root}")
    if fold not in clips.folds:
        there = ", ".join(map(str, sorted(set(clips.folds))))
        raise ValueError(f"--fold {fold}: expected one of {there}, the folds of {clips.root}")
    return [i for i, other in enumerate(clips.folds) if other == fold]


def _check_whole(clips: ClipList, sides: Sequence[Hashable], column: str) -> None:
    side_of: dict[str, Hashable] = {}
    for group, side in zip(clips.groups, sides, strict=bool(clips.groups)):
        if group and side_of.setdefault(group, side) != side:
            raise ValueError(
                f"{clips.root}: expected each group in one {column}, found {group} in {side_of[group]} and {side}"
            )


def _hold_out(clips: ClipList, among: list[int], fraction: float, seed: int) -> list[int]:
    """About `fraction` of each class of the clips `among`, in whole groups; clips that no label holds for are a class
    too. A class keeps a group to train on; one that is all of one group has none held out."""
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for i in among:
        members.setdefault((clips.groups and clips.groups[i]) or i, []).append(i)
    group_of = {i: group for group, indices in members.items() for i in indices}
    of = clips.holds()
    of = np.column_stack([of, ~of.any(1)])
    sizes = {group: of[indices].sum(0) for group, indices in members.items()}
    total = of[among].sum(0)
    held = np.zeros_like(total)
    chosen: list[Hashable] = []

    def take(group: Hashable) -> None:
        nonlocal held
        if group not in chosen and not ((sizes[group] > 0) & (held + sizes[group] >= total)).any():
            chosen.append(group)
            held = held + sizes[group]

    classes = np.flatnonzero(total)
    several = clips.task == "multi_label"
    if several:  # the rarest first, and what it leaves to train on is drawn last (Sechidis et al., ECML 2011)
        classes = classes[np.argsort(total[classes], kind="stable")]
    dealt: set[Hashable] = set()
    for target in classes:
        of_class = [i for i in among if of[i, target]]
        wanted = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        drawn = list(dict.fromkeys(group_of[i] for i in rng.permutation(of_class).tolist()))
        if several:
            drawn.sort(key=dealt.__contains__)
            dealt.update(drawn)
        for group in drawn:
            if held[target] < wanted and 2 * held[target] + sizes[group][target] <= 2 * wanted:  # nearer with it
                take(group)
        for group in sorted(drawn, key=lambda group: int(sizes[group].sum())):
            if not held[target]:  # all are too large
                take(group)
    if not chosen:
        kind = "groups" if clips.groups else "clips"
        raise ValueError(f"{clips.root}: expected at least two {kind} of a class to split, found none with as many")
    return sorted(i for group in chosen for i in members[group])

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmodels.data.clips import ClipList
from ttmodels.data.split import split_clips


def made(
    targets: list[int],
    groups: list[str] | None = None,
    folds: list[int] | None = None,
    splits: list[str] | None = None,
) -> ClipList:
    return ClipList(
        Path("list.csv"),
        tuple("abcdefgh"[: max(targets) + 1]),
        tuple(Path(f"{i}.mp4") for i in range(len(targets))),
        np.array(targets, np.int64),
        tuple(groups or ()),
        tuple(folds or ()),
        tuple(splits or ()),
    )


def test_a_share_of_each_class_validates() -> None:
    clips = made([0] * 20 + [1] * 40 + [2] * 2)
    split = split_clips(clips, 0.25, seed=3)
    assert sorted(split.train + split.valid) == list(range(62))
    assert split.test == []
    assert clips.take(split.valid).counts() == [5, 10, 1]
    assert split_clips(clips, 0.25, seed=3) == split
    assert split_clips(clips, 0.25, seed=4) != split


def test_groups_of_several_classes_are_not_torn() -> None:
    """As a sequence in which two people do all that there is to do."""
    groups = [f"sequence {i % 10}" for i in range(60)]
    clips = made([i // 10 for i in range(60)], groups)
    split = split_clips(clips, 0.2, seed=0)
    assert clips.take(split.valid).counts() == [2] * 6
    assert not {groups[i] for i in split.train} & {groups[i] for i in split.valid}


def several(holds: list[list[int]], groups: list[str] | None = None) -> ClipList:
    return replace(made([0] * len(holds), groups), labels=tuple("abcd"), targets=np.array(holds, np.uint8))


def test_a_clip_counts_for_each_of_its_labels() -> None:
    """b holds for all clips of c too, and a tenth have none: a share of each validates."""
    holds = [[i % 2, i % 5 == 0, i % 10 == 0, 0] for i in range(400)]
    clips = several(holds)
    for seed in range(5):
        split = split_clips(clips, 0.25, seed)
        assert sorted(split.train + split.valid) == list(range(400))
        of_valid = clips.take(split.valid)
        assert of_valid.counts() == pytest.approx([50, 20, 10, 0], abs=3)
        assert int((~of_valid.holds().any(1)).sum()) == pytest.approx(40, abs=3)


def test_a_rare_label_is_held_out_once_and_not_by_the_way() -> None:
    """a holds for all clips: drawn first, it would take any share of d, which is rare."""
    clips = several([[1, i % 2, 0, i % 20 == 0] for i in range(80)])
    for seed in range(20):
        counts = clips.take(split_clips(clips, 0.25, seed).valid).counts()
        assert counts[3] == 1
        assert counts[0] == pytest.approx(20, abs=1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_list_of_several_labels_is_torn_or_left_without_one(data: st.DataObject) -> None:
    num_clips = data.draw(st.integers(4, 30))
    of_one = st.lists(st.integers(0, 1), min_size=4, max_size=4)
    holds = data.draw(st.lists(of_one, min_size=num_clips, max_size=num_clips))
    groups = data.draw(st.lists(st.sampled_from(["", *"stuvwxyz"]), min_size=num_clips, max_size=num_clips))
    clips = several(holds, groups)
    try:
        split = split_clips(clips, data.draw(st.floats(0.05, 0.6)), 0)
    except ValueError as error:
        assert "expected at least two groups of a class" in str(error)  # noqa: PT017
        return
    assert sorted(split.train + split.valid) == list(range(num_clips))
    assert not {groups[i] for i in split.train} & {groups[i] for i in split.valid} - {""}
    assert (clips.take(split.train).holds().any(0) == clips.holds().any(0)).all()
    assert split.valid


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_list_is_torn_or_left_without_a_class(data: st.DataObject) -> None:
    num_clips = data.draw(st.integers(4, 40))
    targets = data.draw(st.lists(st.integers(0, 2), min_size=num_clips, max_size=num_clips))
    groups = data.draw(st.lists(st.sampled_from(["", *"stuvwxyz"]), min_size=num_clips, max_size=num_clips))
    fold_of = {group: data.draw(st.integers(0, 2)) for group in sorted(set(groups))}
    clips = made(targets, groups, [fold_of[group] for group in groups])
    fold = data.draw(st.sampled_from(sorted(set(clips.folds))))
    fraction = data.draw(st.floats(0.05, 0.6))
    try:
        split = split_clips(clips, fraction, 0, fold)
    except ValueError as error:
        assert "expected at least two groups of a class" in str(error) or "expected clips to train on" in str(error)  # noqa: PT017
        return
    assert sorted([*split.train, *split.valid, *split.test]) == list(range(num_clips))
    named = [{groups[i] for i in part} - {""} for part in split]
    assert sum(map(len, named)) == len(set().union(*named))
    assert {clips.folds[i] for i in split.test} == {fold}
    assert {targets[i] for i in split.train} == {
        target for target, other in zip(targets, clips.folds, strict=True) if other != fold
    }
    assert split.valid


def test_the_fold_asked_for_tests_and_its_clips_do_not_validate() -> None:
    clips = made([0, 1] * 30, folds=[i // 2 % 5 for i in range(60)], groups=[f"g{i // 2}" for i in range(60)])
    tested = []
    for fold in range(5):
        split = split_clips(clips, 0.25, 0, fold)
        assert {clips.folds[i] for i in split.test} == {fold}
        assert not set(split.test) & {*split.train, *split.valid}
        assert clips.take(split.valid).counts() == [6, 6]
        tested += split.test
    assert sorted(tested) == list(range(60))
    with pytest.raises(ValueError, match=r"--fold 5: expected one of 0, 1, 2, 3, 4, the folds of list.csv"):
        split_clips(clips, 0.25, 0, 5)
    with pytest.raises(ValueError, match="--fold 0: expected a list with a column fold"):
        split_clips(made([0, 1]), 0.25, 0, 0)


def test_no_clips_may_be_held_back() -> None:
    clips = made([0, 1] * 10, folds=[i // 2 % 5 for i in range(20)])
    assert split_clips(clips, 0, 0) == (list(range(20)), [], [])
    split = split_clips(clips, 0, 0, 3)
    assert (len(split.train), split.valid, split.test) == (16, [], [6, 7, 16, 17])


def test_a_lists_own_split_is_kept() -> None:
    splits = ["train", "valid", "test", "test"] * 4
    split = split_clips(made([0, 0, 0, 1, 1, 1, 1, 0] * 2, splits=splits), 0.5, 0)
    assert [splits[i] for part in split for i in part] == ["train"] * 4 + ["valid"] * 4 + ["test"] * 8


def test_without_a_clip_to_validate_with_a_share_of_the_training_clips_does() -> None:
    splits = ["train", "train", "test"] * 8
    clips = made([0, 1, 0] * 8, splits=splits)
    split = split_clips(clips, 0.25, 0)
    assert {splits[i] for i in split.test} == {"test"}
    assert len(split.test) == 8
    assert {splits[i] for i in (*split.train, *split.valid)} == {"train"}
    assert clips.take(split.valid).counts() == [2, 2]


def test_lists_that_tear_a_group_are_refused() -> None:
    groups = ["x", "x", "y", "z", "y", "z"]
    with pytest.raises(ValueError, match="each group in one split, found x in train and test"):
        split_clips(made([0, 1] * 3, groups, splits=["train", "test", *["train"] * 3, "test"]), 0.2, 0)
    with pytest.raises(ValueError, match="each group in one fold, found z in 1 and 2"):
        split_clips(made([0, 1] * 3, groups, folds=[0, 0, 1, 1, 1, 2]), 0.2, 0, 0)


def test_a_class_of_one_group_is_trained_on_only() -> None:
    split = split_clips(made([0] * 4 + [1] * 4, ["x"] * 4 + ["y", "y", "z", "z"]), 0.5, 0)
    assert split.train[:4] == [0, 1, 2, 3]
    assert len(split.valid) == 2
    assert split_clips(made([0, 0, 1]), 0.5, 0).train[1:] == [2]
    with pytest.raises(ValueError, match=r"list\.csv: expected at least two groups of a class to split, found none"):
        split_clips(made([0, 0, 1, 1], ["x", "x", "y", "y"]), 0.5, 0)
    with pytest.raises(ValueError, match="expected clips to train on, found 4 that test and none beside them"):
        split_clips(made([0, 1, 0, 1], splits=["test"] * 4), 0.5, 0)


def test_a_group_that_is_too_large_does_not_validate() -> None:
    """Whatever is drawn first: 100 of 120 clips are of one scene, and 12 are wanted."""
    groups = ["scene"] * 100 + [f"other {i // 2}" for i in range(20)]
    for seed in range(10):
        assert len(split_clips(made([0] * 120, groups), 0.1, seed).valid) == 12
    pairs = [f"scene {i // 50}" for i in range(100)]
    assert len(split_clips(made([0] * 100, pairs), 0.1, 0).valid) == 50  # there is nothing smaller

from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.clips import ClipList, read_clips


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Empty files, named as videos."""
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
        for i in range(5):
            (tmp_path / label / f"{i}.mp4").touch()
    return tmp_path


def written(folder: Path, text: str) -> Path:
    file = folder / "list.csv"
    file.write_text(text)
    return file


def test_a_folder_has_its_classes_clips(root: Path) -> None:
    clips = read_clips(root)
    assert clips.labels == ("left", "right")
    assert clips.paths == tuple(root / label / f"{i}.mp4" for label in ("left", "right") for i in range(5))
    assert clips.counts() == [5, 5]
    assert read_clips(root, ("right", "left")).paths[0] == root / "right" / "0.mp4"


def test_what_a_folder_lacks_and_what_is_left_out_is_said(root: Path) -> None:
    assert read_clips(root).warnings == []
    for name in ("notes.TXT", "clip.mp5", ".hidden"):
        (root / "left" / name).touch()
    clips = read_clips(root, ("left", "right", "up", "down"))
    suffixes, empty = clips.warnings
    assert suffixes.startswith("left out 2 files by their suffix (.mp5 .txt), ")
    assert empty == "no clips of up, down"
    assert len(clips) == 10


def test_folders_that_do_not_fit_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="found none at"):
        read_clips(folder / "nowhere")
    with pytest.raises(ValueError, match="at least two classes, found"):
        read_clips(folder)
    with pytest.raises(ValueError, match=r"found also \['right'\]"):
        read_clips(root, ("left", "up"))
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with pytest.raises(ValueError, match="expected videos"):
        read_clips(folder)


def test_a_list_says_all_of_its_clips(root: Path) -> None:
    """As spreadsheets write it: a byte order mark, quotes, columns of others, in any order."""
    text = '\ufefflabel,path,frames,fold,group,split\r\n"up, right",r/0.mp4,7,1,b,test\r\ndown,l/1.mp4,9,0,,train\r\n'
    clips = read_clips(written(root, text))
    assert clips.labels == ("down", "up, right")
    assert clips.paths == (root / "r" / "0.mp4", root / "l" / "1.mp4")
    assert clips.targets.tolist() == [1, 0]
    assert (clips.groups, clips.folds, clips.splits) == (("b", ""), (1, 0), ("test", "train"))
    taken = clips.take([1])
    assert (taken.paths, taken.groups, taken.folds) == (clips.paths[1:], ("",), (0,))
    bare = read_clips(written(root, "path,label\na.mp4,a\nb.mp4,b\n"))
    assert (bare.groups, bare.folds, bare.splits, bare.warnings) == ((), (), (), [])


def test_clips_whose_split_is_empty_are_not_used(root: Path) -> None:
    clips = read_clips(written(root, "path,label,split\n1,a,train\n2,b,\n3,b,test\n"))
    assert clips.splits == ("train", "test")
    assert clips.warnings == ["left out 1 clips whose split is empty"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\nx,a\n", "expected a header with path and label, found no label"),
        ("", "found no label, path"),
        ("path,label\nx,a\ny\n", "line 3: expected a value in every column"),
        ("path,label\nx,a\ny,b,c\n", "line 3: expected a value in every column"),
        ("path,label\nx,a\n,b\n", "line 3: expected a path and a label, got '' and 'b'"),
        ("path,label\nx,a\ny,a|b\n", r"line 3: expected one label, got a\|b: several are for --task multi_label"),
        ("path,label,fold\nx,a,0\ny,b,one\n", "line 3: fold: expected a whole number, got 'one'"),
        ("path,label,split\nx,a,train\ny,b,val\n", "line 3: split: expected train, valid, test or nothing, got 'val'"),
        ("path,label\nx,a\nx,b\n", "expected each path once, found x again"),
        ("path,label\nx,a\n", r"at least two classes, found \['a'\]"),
    ],
)
def test_lists_that_do_not_fit_are_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_clips(written(root, text))


def test_a_clip_of_a_list_may_have_several_labels_or_none(root: Path) -> None:
    file = written(root, "path,label,split\nx,b|a,train\ny,,train\nz,b,\nw,c,test\n")
    clips = read_clips(file, task="multi_label")
    assert (clips.task, clips.labels) == ("multi_label", ("a", "b", "c"))
    assert (clips.targets.dtype, clips.targets.tolist()) == (np.uint8, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert clips.counts() == [1, 1, 1]
    assert clips.holds()[0].tolist() == [True, True, False]
    taken = clips.take([0, 1])
    assert (taken.targets.tolist(), taken.warnings) == ([[1, 1, 0], [0, 0, 0]], ["no clips of c"])
    other = read_clips(file, ("c", "b", "a"), "multi_label")
    assert other.targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("label", ["a|", "|", "a||b", "a|b|a"])
def test_labels_that_are_empty_or_come_twice_are_refused(root: Path, label: str) -> None:
    file = written(root, f"path,label\nx,a|b\ny,{label}\n")
    with pytest.raises(ValueError, match=r"line 3: expected labels that differ, '\|' between two, got"):
        read_clips(file, task="multi_label")


def test_a_folder_of_a_class_each_knows_no_clips_of_several(root: Path) -> None:
    with pytest.raises(ValueError, match="--task multi_label: expected a CSV list, whose clips may have several"):
        read_clips(root, task="multi_label")


def test_a_list_keeps_to_the_labels_asked_for(root: Path) -> None:
    file = written(root, "path,label\nx,a\ny,b\n")
    assert read_clips(file, ("b", "c", "a")).targets.tolist() == [2, 0]
    assert read_clips(file, ("b", "c", "a")).warnings == ["no clips of c"]
    with pytest.raises(ValueError, match=r"expected labels of \['b', 'c'\], found also \['a'\]"):
        read_clips(file, ("b", "c"))


def test_a_part_has_no_words_on_the_whole(root: Path) -> None:
    clips: ClipList = read_clips(written(root, "path,label,split\n1,a,train\n2,b,\n3,b,test\n"))
    assert clips.take([0, 1]).warnings == []

"""Small trees in the layout of each publisher, with names as the publisher has them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.clips import ClipList, read_clips
from ttmodels.data.lists import main
from ttmodels.data.published import DATA_SETS
from ttmodels.data.split import split_clips

REAL = Path(__file__).parents[4] / "shared" / "data"


def tree(root: Path, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(name: str, folder: Path, *more: str) -> ClipList:
    out = folder.parent / f"{name}.csv"
    assert main([name, str(folder), "-o", str(out), *more]) == 0
    return read_clips(out)


def names(clips: ClipList, indices: list[int]) -> list[str]:
    return [clips.paths[i].name for i in indices]


@pytest.fixture
def ucf11(tmp_path: Path) -> Path:
    """25 groups a class, of one to three clips, and the annotations beside them."""
    root = tmp_path / "UCF11_updated_mpg"
    for label, name in (("basketball", "shooting"), ("trampoline_jumping", "jumping"), ("walking", "walk_dog")):
        for group in range(1, 26):
            stem = f"{label}/v_{name}_{group:02d}"
            tree(root, *(f"{stem}/v_{name}_{group:02d}_{i:02d}.mpg" for i in range(1, 2 + group % 3)))
            tree(root, f"{label}/Annotation/v_{name}_{group:02d}/v_{name}_{group:02d}_01.xgtf")
    return root


def test_ucf11_in_folds_of_groups(ucf11: Path) -> None:
    clips = listed("ucf11", ucf11)
    assert clips.labels == ("basketball", "trampoline_jumping", "walking")
    assert all(path.is_file() and path.suffix == ".mpg" for path in clips.paths)
    assert len(clips) == 3 * sum(1 + group % 3 for group in range(1, 26))
    assert len(set(clips.groups)) == 75
    assert clips.groups[0] == "v_shooting_01"
    for fold in range(5):
        split = split_clips(clips, 0.2, 0, fold)
        parts = [{clips.groups[i] for i in part} for part in split]
        assert len(parts[2]) == 15
        assert not (parts[0] | parts[1]) & parts[2]
        assert not parts[0] & parts[1]


def test_ucf11_in_the_folds_of_the_paper(ucf11: Path) -> None:
    """numpy's global generator as their code seeds it, over the alphabetical order."""
    clips = listed("ucf11", ucf11, "--protocol", "random")
    assert clips.groups == ()  # a list that names them could not tear them
    np.random.seed(11111986)
    order = np.random.choice(range(len(clips)), len(clips), False)
    for fold, part in enumerate(np.array_split(order, 5)):
        assert split_clips(clips, 0.2, 0, fold).test == sorted(part)


def test_hollywood2(tmp_path: Path) -> None:
    root = tmp_path / "Hollywood2"
    clips = {"train": ["actioncliptrain00001", "actioncliptrain00002"], "test": ["actioncliptest00001"]}
    kissing = {"actioncliptrain00001": "Kiss HugPerson", "actioncliptrain00002": "Run", "actioncliptest00001": "Kiss"}
    actions = (
        "AnswerPhone DriveCar Eat FightPerson GetOutCar HandShake HugPerson Kiss Run SitDown SitUp StandUp".split()
    )
    (root / "ClipSets").mkdir(parents=True)
    for split, of_split in clips.items():
        tree(root, *(f"AVIClips/{name}.avi" for name in of_split), f"ClipSets/EXT-house_{split}.txt")
        for action in actions:
            lines = [f" {name}  {1 if action in kissing[name].split() else -1} \n" for name in of_split]
            (root / "ClipSets" / f"{action}_{split}.txt").write_text("".join(lines))
    assert main(["hollywood2", str(root), "-o", str(tmp_path / "list.csv")]) == 0
    assert (tmp_path / "list.csv").read_text().splitlines() == [
        "path,label,split",
        "Hollywood2/AVIClips/actioncliptrain00001.avi,HugPerson|Kiss,train",
        "Hollywood2/AVIClips/actioncliptrain00002.avi,Run,train",
        "Hollywood2/AVIClips/actioncliptest00001.avi,Kiss,test",
    ]


def test_youtube_celebrities(tmp_path: Path) -> None:
    root = tmp_path / "ytcelebrity"
    number = 1
    for who in ("al_gore", "al_pacino", "julia_roberts"):
        for video, num_clips in ((1, 7), (2, 4), (3, 9), (4, 2), (5, 3)):
            for clip in range(1, num_clips + 1):
                tree(root, f"{number:04d}_{video:02d}_{clip:03d}_{who}.avi")
                number += 1
    tree(root, "readme.txt")
    clips = listed("youtube-celebrities", root)
    assert (len(clips), clips.labels) == (75, ("al_gore", "al_pacino", "julia_roberts"))
    assert len(set(clips.groups)) == 15
    for fold in range(5):
        split = split_clips(clips, 0.25, 0, fold)
        assert min(clips.take(split.test).counts()) > 0
        assert not {clips.groups[i] for i in split.test} & {clips.groups[i] for i in split.train + split.valid}
    random = listed("youtube-celebrities", root, "--protocol", "random")
    assert Counter(random.folds) == dict.fromkeys(range(5), 15)


@pytest.mark.parametrize("folder", ["", "hmdb51_org/"])
def test_hmdb51(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "hmdb51"
    uses = {
        "brush_hair": {
            "April_09_brush_hair_u_nm_np1_ba_goo_0.avi": "112",
            "April_09_brush_hair_u_nm_np1_ba_goo_1.avi": "110",
            "atheismyCut_brush_hair_u_nm_np2_le_goo_0.avi": "121",
            "Brushing_Hair_with_Beth_brush_hair_h_nm_np1_le_goo_0.avi": "211",
        },
        "wave": {
            "21_wave_u_nm_np1_fr_goo_5.avi": "112",
            "A_Beautiful_Mind_2_wave_u_nm_np1_ba_med_4.avi": "021",
            "A_Beautiful_Mind_2_wave_u_nm_np1_ba_med_5.avi": "211",
        },
    }
    (root / "testTrainMulti_7030_splits").mkdir(parents=True)
    for label, clips_of in uses.items():
        tree(root, *(f"{folder}{label}/{name}" for name in clips_of))
        for number in (1, 2, 3):
            lines = [f"{name} {use[number - 1]} \n" for name, use in clips_of.items()]
            (root / "testTrainMulti_7030_splits" / f"{label}_test_split{number}.txt").write_text("".join(lines))
    for number in (1, 2, 3):
        clips = listed("hmdb51", root, "--protocol", f"split{number}")
        assert clips.labels == ("brush_hair", "wave")
        assert all(path.is_file() for path in clips.paths)
        expected = {
            name: {"1": "train", "2": "test"}[use[number - 1]]
            for of_class in uses.values()
            for name, use in of_class.items()
            if use[number - 1] != "0"
        }
        assert dict(zip(names(clips, list(range(len(clips)))), clips.splits, strict=True)) == expected
    assert {"April_09", "A_Beautiful_Mind_2"} <= set(listed("hmdb51", root).groups)
    torn = listed("hmdb51", root, "--protocol", "split3")
    assert "April_09" in torn.groups or "April_09 (test)" in torn.groups
    capsys.readouterr()
    assert main(["hmdb51", str(root), "-o", str(tmp_path / "x.csv"), "--protocol", "split4"]) == 2
    assert "--protocol: expected split1 or split2 or split3 for hmdb51, got split4" in capsys.readouterr().err


def test_a_folder_of_another_layout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ucf11", str(tmp_path), "-o", str(tmp_path / "list.csv")]) == 2
    assert "expected the layout of ucf11, found no clip in it" in capsys.readouterr().err
    assert main(["fights", str(tmp_path), "-o", str(tmp_path / "list.csv")]) == 2
    assert "clips.csv: No such file or directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def made_table(root: Path) -> Path:
    rows = ["path,label,set,sequence,fold,frames,width,height"]
    for sequence in range(1, 21):
        for number, label in enumerate(("handshake", "punch")):
            name = f"{label}/{2 * sequence + number}_{sequence}_{number}.avi"
            tree(root, name)
            rows.append(f"{name},{label},{1 + (sequence > 10)},{sequence},{(sequence - 1) % 10 // 2},90,400,296")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    return root


def check_ut_interaction(root: Path, out: Path) -> None:
    folds, sets = out / "folds.csv", out / "sets.csv"
    assert main(["ut-interaction", str(root), "-o", str(folds)]) == 0
    assert main(["ut-interaction", str(root), "-o", str(sets), "--protocol", "set1-to-set2"]) == 0
    clips = read_clips(folds)
    assert all(path.is_file() for path in clips.paths)
    for fold in range(5):
        split = split_clips(clips, 0.2, 0, fold)
        parts = [{clips.groups[i] for i in part} for part in split]
        assert [len(part) for part in parts] == [13, 3, 4]
        assert len(set.union(*parts)) == 20
    clips = read_clips(sets)
    split = split_clips(clips, 0.2, 0)
    numbers = [{int(clips.groups[i].split()[1]) for i in part} for part in split]
    assert numbers[2] == set(range(11, 21))
    assert numbers[0] | numbers[1] == set(range(1, 11))
    assert not numbers[0] & numbers[1]


def test_ut_interaction(tmp_path: Path) -> None:
    check_ut_interaction(made_table(tmp_path / "ut_interaction"), tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the clips themselves")
def test_ut_interaction_itself(tmp_path: Path) -> None:
    check_ut_interaction(REAL / "ut_interaction", tmp_path)
    assert read_clips(tmp_path / "folds.csv").counts() == [20] * 6


def check_fights(root: Path, out: Path) -> ClipList:
    assert main(["fights", str(root), "-o", str(out / "list.csv")]) == 0
    clips = read_clips(out / "list.csv")
    assert clips.labels == ("fight", "noFight")
    for fold in range(5):
        parts = [{clips.groups[i] for i in part} for part in split_clips(clips, 0.2, 0, fold)]
        assert sum(map(len, parts)) == len(set(clips.groups))
    return clips


def test_fights(tmp_path: Path) -> None:
    root = tmp_path / "fight_surv"
    rows = ["path,label,group,fold,frames,fps,width,height"]
    for number in range(1, 31):
        fights, others = f"fight/fi{number:03d}.mp4", f"noFight/nofi{number:03d}.mp4"
        tree(root, fights, others)
        rows += [f"{fights},fight,{number % 15},{number % 5},53,25.0,480,360"]
        rows += [f"{others},noFight,{number % 10},{number % 5},60,25.0,480,360"]
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    assert len(check_fights(root, tmp_path)) == 60


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the clips themselves")
def test_fights_themselves(tmp_path: Path) -> None:
    clips = check_fights(REAL / "fight_surv", tmp_path)
    assert (clips.counts(), len(set(clips.groups))) == ([150, 150], 46)


def test_every_set_names_its_protocols() -> None:
    assert all(data_set.protocols for data_set in DATA_SETS.values())

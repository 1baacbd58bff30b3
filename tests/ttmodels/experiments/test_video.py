import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ttmodels import checkpoint
from ttmodels.checkpoint import Saved
from ttmodels.data.clips import read_clips
from ttmodels.data.lists import main as write_the_list
from ttmodels.experiments import results, video
from ttmodels.experiments.__main__ import EXPERIMENTS, main
from ttmodels.experiments.study import finished, run
from ttmodels.experiments.ut_interaction import UTInteraction
from ttmodels.experiments.video import Row, VideoExperiment, dense, write_tree

QUICK = ("fights", "ut_interaction")
"""The others have dense models of 44 million weights."""
VIDEO = [name for name, kind in EXPERIMENTS.items() if issubclass(kind, VideoExperiment)]


class Small(UTInteraction):
    name = "small"
    options = "--width 16 --height 12 --num-frames 4 --batch-size 8 --epochs 3 --valid-fraction 0.2"
    rows: ClassVar = {
        "TT-GRU": Row("--cell gru --hidden 16", ".5"),
        "GRU": Row(dense("gru", 16 * 12 * 3, 16)),
        "TT-GRU (set 1 to 2)": Row("--cell gru --hidden 16", protocols=("set1-to-set2",)),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(UTInteraction().made(), tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", VIDEO)
def test_the_made_tree_is_in_the_publishers_layout(name: str, tmp_path: Path) -> None:
    kind = EXPERIMENTS[name]
    assert issubclass(kind, VideoExperiment)
    tree = kind().made()
    clips = {path for path, content in tree.items() if isinstance(content, int)}
    for path in clips:
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).touch()
    for path in tree.keys() - clips:
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(str(tree[path]))
    assert write_the_list([kind.data_set, str(tmp_path / "tree"), "-o", str(tmp_path / "list.csv")]) == 0
    task = "multi_label" if "--task multi_label" in kind.options else "single_label"
    listed = read_clips(tmp_path / "list.csv", task=task)
    assert {str(path.resolve().relative_to(tmp_path / "tree")) for path in listed.paths} == clips


def test_a_row_is_all_folds(data: Path, tmp_path: Path) -> None:
    """The pooled figures are those of the five runs' own files."""
    outcome = run(Small(), data, "TT-GRU", 0, tmp_path)
    folders = sorted((tmp_path / "TT-GRU-seed0").iterdir())
    assert [folder.name for folder in folders] == [f"sequences-fold{fold}" for fold in range(5)]
    tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
    assert sum(test["num_clips"] for test in tests) == 28
    right = sum(test["accuracy"] * test["num_clips"] for test in tests)
    assert outcome.figures["accuracy"] == pytest.approx(right / 28)
    assert outcome.figures["± over folds"] == pytest.approx(np.std([t["accuracy"] for t in tests], ddof=1))
    assert outcome.figures["majority"] == pytest.approx(0.5)
    saved = checkpoint.load(folders[0] / "best.safetensors")
    assert saved.train_config.fold == 0
    assert outcome.num_parameters == Small().num_parameters("TT-GRU") - 4 * 17  # two of the six classes are made
    assert outcome.num_epochs == 3
    assert not list(tmp_path.rglob("last.safetensors"))


def test_the_clips_of_a_fold_are_those_of_the_publisher(data: Path, tmp_path: Path) -> None:
    run(Small(), data, "TT-GRU (set 1 to 2)", 0, tmp_path)
    clips = read_clips(tmp_path / "set1-to-set2.csv")
    tested = json.loads((tmp_path / "TT-GRU (set 1 to 2)-seed0" / "set1-to-set2" / "test.json").read_text())[
        "num_clips"
    ]
    assert tested == clips.splits.count("test") == 14
    only = finished(Small(), tmp_path, (0,))["TT-GRU (set 1 to 2)"][0]
    assert np.isnan(only.figures["± over folds"])
    table = tmp_path / "RESULTS.md"
    results.write(table, Small(), {"TT-GRU (set 1 to 2)": {0: only}}, "one")
    row = next(line for line in table.read_text().splitlines() if line.startswith("| TT-GRU (set"))
    assert row.split("|")[5].strip() == ""
    assert "nan" not in row


@pytest.mark.slow
def test_an_interrupted_row_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds that are done are not run again; the one that was interrupted goes on after its last whole epoch."""
    whole = run(Small(), data, "TT-GRU", 0, tmp_path / "whole")
    begun: list[tuple[str, int]] = []
    save = checkpoint.save

    def interrupted(path: Path, *rest: object) -> None:
        save(path, *rest)  # type: ignore[arg-type]
        if path.parent.name == "sequences-fold2" and path.name == "last.safetensors":
            raise KeyboardInterrupt

    kept = tmp_path / "pieces"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(Small(), data, "TT-GRU", 0, kept)
    train = video.train

    def counted(data: Path, out: Path, *rest: object, saved: Saved | None = None, **more: object) -> float:
        begun.append((out.name, saved.progress.epoch if saved else 0))
        return train(data, out, *rest, saved=saved, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "train", counted)
    outcome = run(Small(), data, "TT-GRU", 0, kept)
    assert begun == [("sequences-fold2", 1), ("sequences-fold3", 0), ("sequences-fold4", 0)]
    assert outcome.figures == whole.figures
    assert outcome.best_epoch == whole.best_epoch
    assert run(Small(), data, "TT-GRU", 0, kept) == outcome
    assert len(begun) == 3


def test_other_options_are_other_runs(data: Path, tmp_path: Path) -> None:
    run(Small(), data, "TT-GRU (set 1 to 2)", 0, tmp_path)

    class Longer(Small):
        options = Small.options.replace("--epochs 3", "--epochs 4")

    assert finished(Longer(), tmp_path, (0,))["TT-GRU (set 1 to 2)"] == {}
    assert run(Longer(), data, "TT-GRU (set 1 to 2)", 0, tmp_path).num_epochs == 4


def test_a_dense_row_has_a_plain_matrix() -> None:
    assert Small().num_parameters("GRU") == (16 * 12 * 3 + 16 + 2) * 48 + 6 * 17
    assert Small().num_parameters("GRU") > 10 * Small().num_parameters("TT-GRU")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in VIDEO])
def test_without_data(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "RESULTS.md"
    for data in ([], ["--data", str(tmp_path)]):
        assert main([name, *data, "--out", str(tmp_path), "--results", str(table)]) == 2
        assert "http" in capsys.readouterr().err
        assert table.read_text().count("no data here") == len(EXPERIMENTS[name].published)

import json
from pathlib import Path
from typing import ClassVar

import pytest

from tests.ttmodels.experiments.test_frame import Halves, Sums
from ttmodels.experiments import frame
from ttmodels.experiments.frame import Experiment, Fit
from ttmodels.experiments.measures import TWO_CLASSES
from ttmodels.experiments.study import finished, run


def test_a_finished_seed_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(Halves(), None, "linear", 0, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(frame, "fitted", lambda *_: pytest.fail("it was fitted again"))
        assert run(Halves(), None, "linear", 0, tmp_path) == first
        assert finished(Halves(), tmp_path, (0, 1)) == {"linear": {0: first}}
    assert run(Halves(), None, "linear", 0, tmp_path / "elsewhere").figures == first.figures

    class Longer(Halves):
        fit = Fit(epochs=3, batch_size=16, learning_rate=0.05, weight_decay=0.0, patience=20)

    assert finished(Longer(), tmp_path, (0,)) == {"linear": {}}
    assert run(Longer(), None, "linear", 0, tmp_path).num_epochs == 3
    assert json.loads((tmp_path / "linear-seed0.json").read_text())["settings"]["epochs"] == 3


def test_a_model_may_have_a_fit_of_its_own(tmp_path: Path) -> None:
    class Apart(Halves):
        published: ClassVar = {"linear": ".5", "other": ".5"}

        def fit_of(self, label: str) -> Fit:
            return Fit(3, 16, 0.05, 0.0, patience=3) if label == "other" else self.fit

    assert run(Apart(), None, "other", 0, tmp_path).num_epochs == 3
    assert run(Apart(), None, "linear", 0, tmp_path).num_epochs == 20
    assert [len(found) for found in finished(Apart(), tmp_path, (0,)).values()] == [1, 1]


def test_rows_of_several_data_sets(tmp_path: Path) -> None:
    class Both(Halves):
        published: ClassVar = {"halves": "-", "sums": "-"}

        def part(self, label: str) -> Experiment:
            return Sums() if label == "sums" else self

    done = {label: run(Both(), None, label, 0, tmp_path) for label in Both.published}
    assert [list(one.figures) for one in done.values()] == [["accuracy"], ["MSE", "R²"]]
    assert finished(Both(), tmp_path, (0,)) == {label: {0: one} for label, one in done.items()}


def test_a_seed_without_a_figure_is_run_again(tmp_path: Path) -> None:
    run(Halves(), None, "linear", 0, tmp_path)

    class Ranked(Halves):
        measure = TWO_CLASSES

    assert finished(Ranked(), tmp_path, (0,)) == {"linear": {}}
    assert list(run(Ranked(), None, "linear", 0, tmp_path).figures) == ["accuracy", "balanced accuracy", "AUC"]

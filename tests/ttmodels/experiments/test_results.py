from pathlib import Path
from typing import ClassVar

from tests.ttmodels.experiments.test_frame import Halves, Sums
from ttmodels.experiments import results
from ttmodels.experiments.frame import Experiment
from ttmodels.experiments.study import Outcome


class Another(Halves):
    name = "another"


def outcome(accuracy: float) -> Outcome:
    return Outcome({"accuracy": accuracy}, 1234, best_epoch=10, num_epochs=12, epoch_s=0.5)


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    results.write(path, Halves(), {"linear": {0: outcome(0.9), 1: outcome(0.8)}}, "the command --seeds 0,1,2")
    text = path.read_text()
    assert "| linear | 1,234 | .5 | 0.8500 ± 0.0707 | 0, 1 | 10 of 20 | 0.50 |" in text
    assert "`the command --seeds 0,1,2`" in text
    assert "points left or right" in text


def test_a_column_for_each_figure(tmp_path: Path) -> None:
    class Both(Halves):
        published: ClassVar = {"linear": ".5", "sums": ".1", "more sums": "-"}

        def part(self, label: str) -> Experiment:
            return self if label == "linear" else Sums()

    path = tmp_path / "RESULTS.md"
    sums = Outcome({"MSE": 0.25, "R²": 0.5}, 1234, best_epoch=10, num_epochs=12, epoch_s=0.5)
    results.write(path, Both(), {"linear": {0: outcome(0.9)}, "sums": {0: sums, 1: sums}}, "one")
    title, line, *rows = path.read_text().splitlines()[-5:]
    assert title == "| model | parameters | published | accuracy | MSE | R² | seeds | best epoch | s an epoch |"
    assert line.count("|") == title.count("|")
    assert rows == [
        "| linear | 1,234 | .5 | 0.9000 |  |  | 0 | 10 of 20 | 0.50 |",
        "| sums | 1,234 | .1 |  | 0.2500 ± 0.0000 | 0.5000 ± 0.0000 | 0, 1 | 10 of 20 | 0.50 |",
        "| more sums | 10 | - | not run yet |  |  |  |  |  |",
    ]


def test_a_section_takes_the_place_of_its_own_alone(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    results.write(path, Halves(), {"linear": {0: outcome(0.9)}}, "one")
    once = path.read_text()
    results.write(path, Another(), {}, "two")
    assert path.read_text().index("## another") < path.read_text().index("## halves")
    assert "| linear | 10 | .5 | not run yet |" in path.read_text()
    both = path.read_text()
    results.write(path, Another(), {}, "two")
    assert path.read_text() == both
    results.write(path, Halves(), {"linear": {0: outcome(0.7)}}, "one")
    assert path.read_text() == both.replace("0.9000", "0.7000")
    assert once.split("## halves")[1] == both.split("## halves")[1]
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]


def test_missing_data_is_said_and_takes_no_figures_away(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    results.write_without_data(path, Halves(), "one")
    assert "| linear | 10 | .5 | no data here |" in path.read_text()
    results.write(path, Halves(), {"linear": {0: outcome(0.9)}}, "one")
    written = path.read_text()
    assert "no data here" not in written
    results.write_without_data(path, Halves(), "one")
    assert path.read_text() == written

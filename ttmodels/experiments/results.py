"""RESULTS.md: a section an experiment, each written by the experiment's own command."""

from __future__ import annotations

import datetime
import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ttmodels.atomic import in_place_of
from ttmodels.experiments.study import Outcome, Section

RESULTS = Path(__file__).with_name("RESULTS.md")
NO_DATA = "no data here"

_HEAD = """# Results of the experiments
Each section is written by the command in it. Figures are those on the test split, which no fit was stopped by: mean
and standard deviation over the seeds, beside the published figure. Where there are folds, a seed's figure is that of
the test clips of all of them together, and "± over folds" the standard deviation between theirs. Every model of a
section has the same splits, dropout, hidden size and, but for what the section says, the same fit. Times are those of
one thread of the machine as it was, busy or not.
"""


def write(path: Path, study: Section, outcomes: Mapping[str, Mapping[int, Outcome]], command: str) -> None:
    """Write an experiment's section in the place of the one that there is, the others as they are.

    Args:
        outcomes: by model and seed, as far as there are any.
    """
    rows = [_row(study, label, outcomes.get(label, {})) for label in study.published]
    made = f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}"
    _replace(path, study, rows, f"`{command}`, {made}.")


def write_without_data(path: Path, study: Section, command: str) -> None:
    """Say in an experiment's section that its data were not there; figures of another run are left alone."""
    sections = _sections(path)
    if study.name not in sections or NO_DATA in sections[study.name]:
        rows = [_row(study, label, None) for label in study.published]
        _replace(path, study, rows, f"`{command}` with its data would fill this table.")


def _row(study: Section, label: str, outcomes: Mapping[int, Outcome] | None) -> str:
    published, part = study.published[label], study.part(label)
    names = _figures(study)
    if not outcomes:
        said = [NO_DATA if outcomes is None else "not run yet", *[""] * (len(names) + 2)]
        return _cells(label, f"{part.num_parameters(label):,}", published, *said)
    runs = list(outcomes.values())
    return _cells(
        label,
        f"{runs[0].num_parameters:,}",
        published,
        *(_over_seeds([one.figures[name] for one in runs if name in one.figures]) for name in names),
        ", ".join(map(str, sorted(outcomes))),
        f"{statistics.fmean(one.best_epoch for one in runs):.0f} of {part.num_epochs(label)}",
        f"{statistics.fmean(one.epoch_s for one in runs):.2f}",
    )


def _figures(study: Section) -> list[str]:
    """Of all rows, in the order in which they come."""
    return list(dict.fromkeys(name for label in study.published for name in study.part(label).figures))


def _over_seeds(values: Sequence[float]) -> str:
    if not values or math.isnan(values[0]):
        return ""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _replace(path: Path, study: Section, rows: Sequence[str], made: str) -> None:
    names = _figures(study)
    titles = "model", "parameters", "published", *names, "seeds", "best epoch", "s an epoch"
    table = "\n".join([_cells(*titles), f"|---|---:|---:|{'---:|' * len(names)}---|---:|---:|", *rows])
    about = f"{study.about} Published: {study.source}."
    sections = _sections(path) | {study.name: f"## {study.name}\n{about}\n\n{made}\n\n{table}\n"}
    with in_place_of(path) as part:
        part.write_text("\n".join([_HEAD, *(sections[name] for name in sorted(sections))]))


def _sections(path: Path) -> dict[str, str]:
    """The sections that there are, by the experiment's name."""
    if not path.exists():
        return {}
    _, *found = re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE)
    return {text.split("\n", 1)[0].removeprefix("## "): text.rstrip() + "\n" for text in found}

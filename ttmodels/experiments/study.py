"""What every experiment is to its command and to its table: models, each run from seeds, finished seeds kept."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ttmodels.atomic import in_place_of


@dataclass(frozen=True)
class Outcome:
    """One model fitted from one seed."""

    figures: Mapping[str, float]
    """By name, those that the study has: on the test split, of the best epoch."""
    num_parameters: int
    best_epoch: int
    num_epochs: int
    epoch_s: float
    """Mean time of an epoch."""


class Section(ABC):
    """A section of RESULTS.md: what is said about it, and the rows of its table."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What the data are and what differs from the published setting, for RESULTS.md."""
    source: ClassVar[str]
    """Where the published figures are from."""
    published: ClassVar[Mapping[str, str]]
    """Of every model, in the table's order: the published test figure, or a dash."""
    needs_data: ClassVar[bool] = True
    """Whether its data come from outside; otherwise it makes them."""

    @abstractmethod
    def part(self, label: str) -> Study:
        """The study that a row of the table is of."""


class Study(Section):
    """A section whose rows are all of one data set; or the rows of one data set in a section of several."""

    def part(self, label: str) -> Study:
        return self

    @property
    @abstractmethod
    def figures(self) -> tuple[str, ...]:
        """Names of all figures of an outcome, in the table's order."""

    @abstractmethod
    def settings(self, label: str, *, quick: bool = False) -> dict[str, Any]:
        """What makes a run of this model that run, beside the seed, as JSON has it; a run of others is no such run."""

    @abstractmethod
    def num_parameters(self, label: str) -> int:
        """Of a model that need not have been run."""

    @abstractmethod
    def num_epochs(self, label: str) -> int:
        """As many as a run may have."""

    @abstractmethod
    def outcome(self, label: str, seed: int, data_folder: Path | None, kept: Path, *, quick: bool) -> Outcome:
        """Run one model from one seed.

        Args:
            kept: folder and stem of the names of what is to stay of the run, beside its outcome.
            quick: two epochs on few and small data of the same form, made for it.

        Raises:
            FileNotFoundError: the data are not in the folder; says where to get them.
        """


def run(
    section: Section, data_folder: Path | None, label: str, seed: int, kept: Path, *, quick: bool = False
) -> Outcome:
    """One model from one seed; read from the folder `kept` where it has been finished, else put there."""
    study = section.part(label)
    path, settings = _place(study, label, seed, kept, quick=quick)
    if (done := read_outcome(path, settings, study.figures)) is not None:
        return done
    outcome = study.outcome(label, seed, data_folder, path.with_suffix(""), quick=quick)
    write_outcome(path, settings, outcome)
    return outcome


def finished(section: Section, kept: Path, seeds: Sequence[int]) -> dict[str, dict[int, Outcome]]:
    """What is in the folder `kept` of these seeds, by model and seed."""
    found: dict[str, dict[int, Outcome]] = {}
    for label in section.published:
        part = section.part(label)
        places = {seed: _place(part, label, seed, kept) for seed in seeds}
        found[label] = {seed: done for seed, place in places.items() if (done := read_outcome(*place, part.figures))}
    return found


def _place(study: Study, label: str, seed: int, kept: Path, *, quick: bool = False) -> tuple[Path, dict[str, Any]]:
    """The file of a run, and the settings that make it that run."""
    settings = {"experiment": study.name, "model": label, "seed": seed, **study.settings(label, quick=quick)}
    return kept / f"{label}-seed{seed}.json", settings


def read_outcome(path: Path, settings: dict[str, Any], figures: Sequence[str]) -> Outcome | None:
    """None where there is no such file, or one of other settings or figures."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    values = saved["outcome"]
    if saved["settings"] != settings or not set(figures) <= values.keys():
        return None
    return Outcome({name: values.pop(name) for name in figures}, **values)


def write_outcome(path: Path, settings: dict[str, Any], outcome: Outcome) -> None:
    values = dataclasses.asdict(outcome)
    saved = {"settings": settings, "outcome": values.pop("figures") | values}
    with in_place_of(path) as part:
        part.write_text(json.dumps(saved, indent=2) + "\n")

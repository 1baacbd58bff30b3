"""The report of a run: what stands on the page, and the pictures beside it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from tests.made import random_classifier, tiny_config, write_folder
from ttmodels import checkpoint
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.config import TrainConfig
from ttmodels.data.clips import read_clips
from ttmodels.data.decoded import DecodedClips
from ttmodels.data.report import data_report
from ttmodels.evaluate import predict
from ttmodels.predictions import Predictions
from ttmodels.report import plots
from ttmodels.report.page import label_rows, write_report

HISTORY = [
    {"train_loss": 1.5, "valid_loss": 1.25, "valid_score": 0.25},  # of a run that did not note learning rates yet
    {"train_loss": 1.0, "valid_loss": 0.75, "valid_score": 0.5, "learning_rate": 0.0625, "seconds": 2.5},
]
LABELS = ("<b>left</b>", "right $1$", "still & 'so'")
"""What would not be seen as it is where nothing is escaped."""


class Page(HTMLParser):
    """Text, and the sources of pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.pictures += [value or "" for name, value in attrs if (tag, name) == ("img", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder(tmp_path_factory.mktemp("clips"), ("left", "right", "still"), 4)
    rows = [f"{name}/{i}.mp4,{label}\n" for name, label in zip(("left", "right", "still"), LABELS, strict=True)
            for i in range(4)]  # fmt: skip
    (root / "list.csv").write_text("path,label\n" + "".join(rows))
    return root


def reported(folder: Path, out: Path, task: str, temperature: float = 1.0) -> tuple[Page, dict[str, Predictions]]:
    model = random_classifier(tiny_config(labels=LABELS, task=task))
    progress = Progress(epoch=2, best_epoch=2, data_set="<i>clips</i>", temperature=temperature)
    checkpoint.save(out / "best.safetensors", model, TrainConfig(), progress)
    best: Checkpoint = checkpoint.load(out / "best.safetensors")
    clips = DecodedClips(
        read_clips(folder / "list.csv", LABELS, model.config.task), model.config.sampling, out / "cache"
    )
    parts = {
        "train": clips.take(range(0, 12, 3)),
        "valid": clips.take([1, 4, 7, 10]),
        "test": clips.take([2, 5, 8, 11]),
    }
    said = {name: predict(model, parts[name], name) for name in ("valid", "test")}
    page = write_report(
        out / "report", best, HISTORY, said, parts, data_report(parts, {}, 0), "python -m ttmodels.train --data '<x>'"
    )
    return Page(page.read_text(encoding="utf-8")), said


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_it_says_what_a_person_asks_and_shows_it(task: str, folder: Path, tmp_path: Path) -> None:
    page, said = reported(folder, tmp_path, task, temperature=2.0)
    text = "".join(page.words)
    for label in (*LABELS, "<i>clips</i>", "python -m ttmodels.train --data '<x>'", "batch_size"):
        assert label in text
    assert ("majority class" if task == "single_label" else "label frequencies") in page.words
    assert not {"i", "x"} & page.tags
    for part, of in said.items():
        assert f"{of.score:.4f}" in text
        assert f"{of.loss():.4f} → {of.loss(2.0):.4f}" in text
        assert f"{of.reliability().error:.4f} → {of.reliability(2.0).error:.4f}" in text
        worst = int(of.losses(2.0).argmax())
        first = re.search(
            rf"{part.capitalize()}.*?Clips with the highest loss\s*true: (.*?); predicted: (.*?); loss", text, re.S
        )
        assert first is not None
        for label, chance, holds in zip(LABELS, of.probabilities(2.0)[worst], of.truth[worst], strict=True):
            assert (f"{label} ({chance:.2f})" in first[1]) == holds
    assert "No temperature was fitted: expected at least 20 clips and 5 mistakes, got 4 and " in text

    assert sorted(page.pictures) == sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert len(page.pictures) == 1 + 2 * (4 + (2 if task == "single_label" else 1))
    for name in page.pictures:
        assert matplotlib.image.imread(tmp_path / "report" / name).std() > 0.01


def test_without_a_temperature_there_is_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    page, _ = reported(folder, tmp_path, "single_label")
    assert "→" not in "".join(page.words)


def test_a_report_takes_the_place_of_another(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "valid-99.png").write_bytes(b"of a run before")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    reported(folder, tmp_path, "multi_label")
    assert not (tmp_path / "report" / "valid-99.png").exists()
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_precision_and_recall_are_scikit_learns(task: str) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(60, 4)).astype(np.float32)
    logits[:, 3] = -9  # said of no clip
    targets = (rng.random((60, 4)) < 0.4).astype(np.uint8) if task == "multi_label" else rng.integers(0, 4, 60)
    predicted = logits > 0 if task == "multi_label" else logits.argmax(-1)
    rows = label_rows(Predictions(logits, targets, ("a", "b", "c", "d"), task))
    precision, recall, _, clips = precision_recall_fscore_support(targets, predicted, zero_division=np.nan)
    for i, row in enumerate(rows):
        assert row["precision"] == ("-" if i == 3 else f"{precision[i]:.3f}")
        assert (row["recall"], row["clips"]) == (f"{recall[i]:.3f}", str(clips[i]))


def test_curves_are_of_what_was_noted() -> None:
    def titles(history: list[dict[str, float]]) -> list[str]:
        return [axes.get_title() for axes in plots.learning_curves(history, 2, "accuracy").axes]

    assert titles(HISTORY) == ["loss, nats", "learning rate", "validation accuracy"]
    without = [{name: value for name, value in entry.items() if "valid" not in name} for entry in HISTORY]
    assert titles(without) == ["loss, nats", "learning rate"]
    losses = plots.learning_curves(without, 2, "accuracy").axes[0]
    assert [line.get_label() for line in losses.lines] == ["training", "best epoch"]

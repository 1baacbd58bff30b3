"""The pictures of a report that are drawn: learning curves, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ttmodels.predictions import NUM_BINS, Predictions

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"


def learning_curves(history: Sequence[dict[str, float]], best_epoch: int, measure: str) -> Figure:
    """Losses, the learning rate and, where clips were held back, the validation score by epoch; which epoch was the
    best."""
    figure = Figure((10, 3), layout="constrained")
    there = {key for entry in history for key in entry}
    epochs = np.arange(1, len(history) + 1)
    marker = "o" if len(history) < 30 else ""

    def draw(axes: Axes, title: str, **curves: str) -> None:
        for (name, key), colour in zip(curves.items(), (BLUE, ORANGE), strict=False):
            if key not in there:
                continue
            values = [entry.get(key, np.nan) for entry in history]
            axes.plot(epochs, values, label=name, color=colour, marker=marker, markersize=3)
        axes.axvline(best_epoch, color=GREY, linestyle=":", label="best epoch")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    losses, rates, *others = figure.subplots(1, 2 + ("valid_score" in there))
    draw(losses, "loss, nats", training="train_loss", validation="valid_loss")
    losses.legend(fontsize=8)
    draw(rates, "learning rate", rate="learning_rate")
    for scores in others:
        draw(scores, f"validation {measure}", score="valid_score")
        scores.set_ylim(0, 1.02)
    return figure


def confusion(said: Predictions) -> Figure:
    """Each row's clips by the label put first: shares as colour, counts as numbers."""
    counts, num = said.confusion, len(said.labels)
    side = min(2.2 + 0.45 * num, 14)
    figure = Figure((side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(num), map(_plain, said.labels), rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(num), map(_plain, said.labels), fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(picture, ax=axes, label="share of the true label's clips", shrink=0.7)
    return figure


def calibration(said: Predictions, temperature: float) -> Figure:
    """How often what was said with so much confidence is true, and how often it was said; before and after."""
    temperatures = [1.0] if temperature == 1 else [1.0, temperature]
    figure = Figure((4.2 * len(temperatures), 4.6), layout="constrained")
    grid = figure.subplots(2, len(temperatures), height_ratios=(3, 1), sharex=True, squeeze=False)
    middles, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 0.9 / NUM_BINS
    for (diagram, histogram), T in zip(grid.T, temperatures, strict=True):
        found = said.reliability(T)
        diagram.bar(middles, found.accuracy, width, color=BLUE)
        diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--")
        some = found.count > 0
        diagram.plot(found.confidence[some], found.accuracy[some], "o", color=ORANGE, markersize=4)
        before = "without a temperature" if T == 1 else f"at the temperature {T:.3g}"
        diagram.set_title(f"{before}: calibration error {found.error:.3f}", fontsize=10)
        diagram.set_ylim(0, 1)
        histogram.bar(middles, found.count, width, color=GREY)
        histogram.set_xlim(0, 1)
        histogram.set_xlabel("confidence")
    grid[0, 0].set_ylabel("share that is true")
    grid[1, 0].set_ylabel("clips" if said.task == "single_label" else "labels")
    return figure


def _plain(label: str) -> str:
    """A label as it is: without it matplotlib reads dollars as mathematics."""
    return label.replace("$", r"\$")

"""The page: index.html and its pictures, to be read without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from service.engine.session import holding
from ttmodels.checkpoint import Checkpoint
from ttmodels.data.decoded import DecodedClips
from ttmodels.data.report import DataReport
from ttmodels.predictions import SCORES, Predictions
from ttmodels.report import plots
from ttmodels.report.worst import worst_clips
from ttmodels.temperature import why_not_fitted


def write_report(
    folder: Path,
    best: Checkpoint,
    history: list[dict[str, float]],
    said: Mapping[str, Predictions],
    clips: Mapping[str, DecodedClips],
    data: DataReport,
    command: str,
) -> Path:
    """Write a report, in the place of one that is in `folder`; the page's path.

    Args:
        best: with the temperature.
        history: of all epochs, those after the best too.
        said: by the best epoch of the clips of `valid` and of `test`, where there are some.
        clips: by part; those of `said` are looked at.
        command: that the run was started with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    progress, temperature = best.progress, best.progress.temperature
    measure = SCORES[best.model_config.task]
    plots.learning_curves(history, progress.best_epoch, measure).savefig(folder / "curves.png", dpi=110)
    page = _template().render(
        title=f"{progress.data_set}: {best.path.parent.resolve().name}",
        num_epochs=len(history),
        best_epoch=progress.best_epoch,
        chosen="valid" in said,
        measure=measure,
        most=data.most,
        temperature=temperature,
        calibrated=_calibrated(said.get("valid"), temperature),
        parts=[_part(name, of, clips[name], data, temperature, folder) for name, of in said.items()],
        data=str(data),
        command=command,
        configuration=_configuration(best),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("ttmodels.report").joinpath("page.html").read_text(encoding="utf-8"))


def _part(
    name: str, said: Predictions, clips: DecodedClips, data: DataReport, temperature: float, folder: Path
) -> dict[str, Any]:
    pictures = {"calibration": plots.calibration(said, temperature)}
    if said.task == "single_label":
        pictures["confusion"] = plots.confusion(said)
    for what, picture in pictures.items():
        picture.savefig(folder / f"{name}-{what}.png", dpi=110)
    errors = (said.reliability(1.0).error, said.reliability(temperature).error)
    return {
        "name": name,
        "said": said,
        "majority": data.majority[name],
        "metadata_only": data.metadata_only[name],
        "loss": _change(said.loss(), said.loss(temperature), temperature),
        "calibration_error": _change(*errors, temperature),
        "confusion": f"{name}-confusion.png" if "confusion" in pictures else "",
        "calibration": f"{name}-calibration.png",
        "rows": label_rows(said),
        "average_precisions": said.task == "multi_label",
        "worst": worst_clips(said, clips, temperature, folder, name),
    }


def label_rows(said: Predictions) -> list[dict[str, str]]:
    """Of each label: its clips, precision, recall and average precision; "-" where there is nothing to divide by."""
    chosen = holding(said.probabilities(), said.task)
    hits, claims, clips = (array.sum(0) for array in (chosen & said.truth, chosen, said.truth))
    with np.errstate(invalid="ignore"):
        figures = {"precision": hits / claims, "recall": hits / clips, "average_precision": said.average_precisions}
    return [
        {"label": label, "clips": str(clips[i])}
        | {name: "-" if np.isnan(values[i]) else f"{values[i]:.3f}" for name, values in figures.items()}
        for i, label in enumerate(said.labels)
    ]


def _change(before: float, after: float, temperature: float) -> str:
    return f"{after:.4f}" if temperature == 1 else f"{before:.4f} → {after:.4f}"


def _calibrated(valid: Predictions | None, temperature: float) -> str:
    if why := why_not_fitted(valid):
        return f"No temperature was fitted: {why}."
    return f"Logits are divided by {temperature:.4g}, the temperature that was fitted on validation."


def _configuration(best: Checkpoint) -> dict[str, object]:
    return {
        field.name: getattr(config, field.name)
        for config in (best.model_config, best.train_config)
        for field in dataclasses.fields(config)
    }

"""What a run ends with: the temperature, the figures of its best epoch on validation and test, the report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ttmodels import checkpoint
from ttmodels.data.decoded import DecodedClips
from ttmodels.data.report import DataReport
from ttmodels.evaluate import Figures, in_words, label_table
from ttmodels.predictions import Predictions
from ttmodels.report.page import write_report
from ttmodels.temperature import fit_temperature, why_not_fitted


def conclude(
    out: Path,
    history: list[dict[str, float]],
    said: Mapping[str, Predictions],
    clips: Mapping[str, DecodedClips],
    data: DataReport,
) -> None:
    """Fit the temperature, put it into OUT/best.safetensors, write OUT/test.json and OUT/report, and print all of it.

    Args:
        history: of every epoch.
        said: by the best epoch of the clips of `valid` and of `test`, where there are some.
        clips: by part.
    """
    path = out / "best.safetensors"
    best = checkpoint.load(path)
    valid = said.get("valid")
    best.progress.temperature = temperature = fit_temperature(valid)
    checkpoint.save(path, best.model(), best.train_config, best.progress)
    best = checkpoint.load(path)
    print(f"best epoch {best.progress.best_epoch}; {path}")
    for name, of in said.items():
        print(f"{name} {in_words(of, temperature)} ({data.baselines(name)})", label_table(of), sep="\n")
    if "test" in said:
        metrics = said["test"].metrics("test", temperature)
        (out / "test.json").write_text(Figures(**dict(metrics), checkpoint_sha256=best.sha256).model_dump_json())
    why = why_not_fitted(valid)
    if valid is None or why:
        print(f"temperature 1: none was fitted on validation: {why}")
    else:
        before, after = (valid.reliability(T).error for T in (1.0, temperature))
        print(f"temperature {temperature:.4g}: calibration error on validation {before:.4f} before, {after:.4f} after")
    page = write_report(out / "report", best, history, said, clips, data, shlex.join(sys.orig_argv))
    print(f"report {page}", flush=True)

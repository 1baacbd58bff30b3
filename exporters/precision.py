"""How far a graph of lower precision is from the same model's in fp32, on the same clips, and whether that is near
enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from exporters.timing import feeds, open_session
from service.cores import usable_cores
from service.engine.session import holding, probabilities
from service.manifest import Manifest, PrecisionReport
from service.video import Sampling
from ttmodels.data.decoded import DecodedClips
from ttmodels.predictions import Predictions

BATCH = 8
NUM_MADE = 64
"""Clips that are made where no folder is given."""

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]
"""Frames uint8 [batch, time, height, width, 3], and the targets of `ClipList` where they are known."""


@dataclass(frozen=True)
class Bounds:
    """What an export lets pass."""

    min_agreement: float = 0.95
    max_probability_difference: float = 0.1
    max_accuracy_loss: float = 0.01
    """Of a multi-label model, of mean average precision."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= (value := getattr(self, field.name)) <= 1:
                raise ValueError(f"{field.name}: expected a number from 0 to 1, got {value}")


class PrecisionError(ValueError):
    """The graph is further from fp32 than allowed."""


def compare(graph: bytes, fp32: bytes, clips: DecodedClips | None, manifest: Manifest) -> PrecisionReport:
    """The figures of both graphs on labelled clips, or on made ones without them."""
    batches: Batches = made_clips(manifest.sampling) if clips is None else clips.batches(BATCH)
    sessions = [open_session(source, usable_cores()) for source in (graph, fp32)]
    found: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for frames, true in batches:
        found.append(np.stack([np.asarray(one.run(["logits"], feeds(one, frames))[0]) for one in sessions]))
        targets += [] if true is None else [true]
    logits = np.concatenate(found, axis=1)
    both = np.stack([probabilities(of_one, manifest) for of_one in logits])
    several = manifest.task == "multi_label"
    same = np.equal(*holding(both, manifest.task))
    said = [Predictions(one, np.concatenate(targets), manifest.labels, manifest.task) for one in logits if targets]
    accuracy, accuracy_fp32 = (one.accuracy for one in said) if said else (None, None)
    mean_ap, mean_ap_fp32 = (one.mean_ap for one in said) if said and several else (None, None)
    return PrecisionReport(
        clips="made: smooth noise that changes" if clips is None else clips.clips.root.name,
        num_clips=both.shape[1],
        label_agreement=float((same if several else same.all(-1)).mean()),
        max_probability_difference=float(np.abs(both[0] - both[1]).max()),
        max_logit_difference=float(np.abs(logits[0] - logits[1]).max()),
        accuracy=accuracy,
        accuracy_fp32=accuracy_fp32,
        mean_ap=mean_ap,
        mean_ap_fp32=mean_ap_fp32,
    )


def check_bounds(report: PrecisionReport, bounds: Bounds) -> None:
    """Pass what is within the bounds.

    Raises:
        PrecisionError: names every figure that is.
    """
    if report.mean_ap is None:
        measure, loss = "accuracy", (report.accuracy_fp32 or 0.0) - (report.accuracy or 0.0)
    else:
        measure, loss = "mean AP", (report.mean_ap_fp32 or 0.0) - report.mean_ap
    faults = [
        f"{name} {got:.4g}, expected at {word} {bound:g}"
        for name, got, word, bound, fine in (
            ("label agreement", report.label_agreement, "least", bounds.min_agreement, np.greater_equal),
            (
                "largest difference of probabilities",
                report.max_probability_difference,
                "most",
                bounds.max_probability_difference,
                np.less_equal,
            ),
            (f"loss of {measure}", loss, "most", bounds.max_accuracy_loss, np.less_equal),
        )
        if not fine(got, bound)  # also where it is not a number
    ]
    if faults:
        raise PrecisionError(f"too far from fp32 on {report.num_clips} clips ({report.clips}): {'; '.join(faults)}")


def made_clips(sampling: Sampling, num_clips: int = NUM_MADE) -> Iterator[tuple[np.ndarray, None]]:
    """Noise on coarse grids, made smooth: colours and contrasts, from few large shapes to many small ones, that change
    with time. The same on every call.
    """
    generator = torch.Generator().manual_seed(0)
    for start in range(0, num_clips, BATCH):
        frames = []
        for number in range(start, min(start + BATCH, num_clips)):
            detail = 2 + number % 7
            coarse = torch.randn(1, 3, detail, 2 * detail, 2 * detail, generator=generator)
            size = (sampling.num_frames, sampling.height, sampling.width)
            smooth = functional.interpolate(coarse, size, mode="trilinear", align_corners=True)
            contrast, light = 20 + 80 * torch.rand(2, generator=generator)
            frames.append((smooth[0] * contrast + light + 60).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0))
        yield torch.stack(frames).numpy(), None

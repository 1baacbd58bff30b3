"""What a model said, as the bodies of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean

import numpy as np

from service.engine.batcher import Inference
from service.engine.model import Model
from service.engine.session import probabilities
from service.schemas import (
    Classification,
    ClipFacts,
    ModelName,
    ScoredLabel,
    Span,
    StageTimes,
    Step,
    Timeline,
    VideoFacts,
    Window,
)
from service.video.assembly import WindowInfo
from service.video.decode import ClipInfo
from service.video.windows import Windowing


def classification(
    model: Model, info: ClipInfo, inference: Inference, top_k: int, upload_bytes: int, times_s: Mapping[str, float]
) -> Classification:
    manifest = model.session.clip_manifest()
    labels = manifest.labels
    likeliest = best(probabilities(inference.logits, manifest), labels, top_k)
    over_time = probabilities(inference.logits_over_time, manifest)
    steps = [
        Step(time_s=time_s, label=labels[top], probability=row[top], probabilities=row)
        for time_s, row, top in zip(info.times_s, over_time.tolist(), over_time.argmax(-1).tolist(), strict=True)
    ]
    return Classification(
        label=likeliest[0].label,
        probability=likeliest[0].probability,
        top_k=likeliest,
        over_time=steps,
        labels=list(labels),
        model=model_name(model),
        clip=ClipFacts(**vars(info), upload_bytes=upload_bytes, num_frames_used=len(set(info.times_s))),
        times_ms=_milliseconds(times_s),
    )


def window(model: Model, info: WindowInfo, inference: Inference, top_k: int) -> Window:
    manifest = model.session.clip_manifest()
    whole = probabilities(inference.logits, manifest)
    likeliest = best(whole, manifest.labels, top_k)
    return Window(
        label=likeliest[0].label,
        probability=likeliest[0].probability,
        top_k=likeliest,
        probabilities=whole.tolist(),
        from_s=info.from_s,
        to_s=info.to_s,
        times_s=list(info.times_s),
        pts_s=list(info.pts_s),
    )


def timeline(
    model: Model,
    info: ClipInfo,
    windowing: Windowing,
    windows: Sequence[Window],
    upload_bytes: int,
    times_s: Mapping[str, float],
) -> Timeline:
    num_frames_used = len({time_s for each in windows for time_s in each.times_s})
    facts = {name: value for name, value in vars(info).items() if name in VideoFacts.model_fields}
    return Timeline(
        spans=spans(windows),
        windows=list(windows),
        window_s=windowing.window_s,
        stride_s=windowing.stride_s,
        labels=list(model.session.clip_manifest().labels),
        model=model_name(model),
        clip=VideoFacts(**facts, upload_bytes=upload_bytes, num_frames_used=num_frames_used),
        times_ms=_milliseconds(times_s),
    )


def spans(windows: Sequence[Window]) -> list[Span]:
    """Neighbouring windows of one label, merged.

    Where two spans meet, windows may overlap: there the border is half way between the middles of the two windows, so
    that each moment belongs to the window whose middle is nearest.
    """
    groups = [list(group) for _, group in groupby(windows, key=lambda each: each.label)]
    middles = [[(each.from_s + each.to_s) / 2 for each in group] for group in groups]
    borders = [
        windows[0].from_s,
        *((before[-1] + after[0]) / 2 for before, after in pairwise(middles)),
        windows[-1].to_s,
    ]
    return [
        Span(
            label=group[0].label,
            from_s=round(start, 9),
            to_s=round(end, 9),
            probability=fmean(each.probability for each in group),
        )
        for group, (start, end) in zip(groups, pairwise(borders), strict=True)
    ]


def best(row: np.ndarray, labels: Sequence[str], top_k: int) -> list[ScoredLabel]:
    """The likeliest labels, best first.

    Args:
        row: their probabilities, [classes].
    """
    order = np.argsort(-row, kind="stable")[:top_k]
    return [ScoredLabel(label=labels[i], probability=row[i]) for i in order]


def model_name(model: Model) -> ModelName:
    session, manifest = model.session, model.session.clip_manifest()
    return ModelName(
        name=manifest.name,
        version=manifest.version,
        sha256=session.sha256,
        precision=manifest.precision,
        provider=session.provider,
    )


def _milliseconds(times_s: Mapping[str, float]) -> StageTimes:
    return StageTimes(**{stage: round(1e3 * spent, 3) for stage, spent in times_s.items()})

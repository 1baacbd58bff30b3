"""What a model said, as the bodies of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean

import numpy as np

from service.engine.batcher import Inference
from service.engine.model import Model
from service.engine.session import holding, probabilities
from service.manifest import Manifest
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
    manifest = model.session.clip_manifest()
    num_frames_used = len({time_s for each in windows for time_s in each.times_s})
    facts = {name: value for name, value in vars(info).items() if name in VideoFacts.model_fields}
    return Timeline(
        spans=spans(windows, manifest),
        windows=list(windows),
        window_s=windowing.window_s,
        stride_s=windowing.stride_s,
        labels=list(manifest.labels),
        model=model_name(model),
        clip=VideoFacts(**facts, upload_bytes=upload_bytes, num_frames_used=num_frames_used),
        times_ms=_milliseconds(times_s),
    )


def spans(windows: Sequence[Window], manifest: Manifest) -> list[Span]:
    """Neighbouring windows for which a label holds, merged.

    Where windows overlap, the border between two is half way between their middles, so that each moment belongs to the
    window whose middle is nearest.
    """
    middles = [(each.from_s + each.to_s) / 2 for each in windows]
    borders = [windows[0].from_s, *(fmean(pair) for pair in pairwise(middles)), windows[-1].to_s]
    chances = np.array([each.probabilities for each in windows])
    held = holding(chances, manifest.task)
    found = []
    for label in np.flatnonzero(held.any(0)):
        for holds, places in groupby(range(len(windows)), key=held[:, label].tolist().__getitem__):
            run = list(places)
            if holds:
                start, end = (round(border, 9) for border in (borders[run[0]], borders[run[-1] + 1]))
                probability = float(chances[run, label].mean())
                found.append(Span(label=manifest.labels[label], from_s=start, to_s=end, probability=probability))
    return sorted(found, key=lambda span: span.from_s)


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
        task=manifest.task,
        sha256=session.sha256,
        precision=manifest.precision,
        provider=session.provider,
    )


def _milliseconds(times_s: Mapping[str, float]) -> StageTimes:
    return StageTimes(**{stage: round(1e3 * spent, 3) for stage, spent in times_s.items()})

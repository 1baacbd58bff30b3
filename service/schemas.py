"""The bodies of answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.manifest import Manifest


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class ScoredLabel(_Body):
    label: str
    probability: float


class Step(_Body):
    """What the model believes after seeing the clip up to and with the frame shown at `time_s`."""

    time_s: float
    label: str
    probability: float
    probabilities: list[float]
    """In the order of `labels`."""


class ModelName(_Body):
    """Which model answered, and where it ran."""

    name: str
    version: str
    sha256: str
    precision: Literal["fp32", "fp16", "int8"]
    provider: Literal["cpu", "cuda"]


class ClipFacts(_Body):
    """What was found in the upload. Times are seconds from the first picture."""

    upload_bytes: int
    container: str
    codec: str
    width: int
    height: int
    duration_s: float
    frame_rate: float | None
    num_frames: int
    rotation: int
    num_frames_used: int
    times_s: list[float]
    """When each frame that the model saw is shown."""
    warnings: list[str]


class StageTimes(_Body):
    """Where the time went, in milliseconds."""

    upload: float
    """Receiving the body."""
    queue: float
    """Waiting for a free decoder."""
    decode: float
    infer: float
    """Waiting for the batch and running it."""
    total: float


class Classification(_Body):
    """A clip's class."""

    label: str
    probability: float
    top_k: list[ScoredLabel]
    over_time: list[Step]
    labels: list[str]
    model: ModelName
    clip: ClipFacts
    times_ms: StageTimes


class ModelInfo(_Body):
    """A model, as its file describes it, and how it is served."""

    name: str
    version: str
    default: bool
    provider: Literal["cpu", "cuda"]
    provider_reason: str | None
    """Why the model does not run on CUDA, where that was open."""
    sha256: str
    manifest: Manifest


class ModelList(_Body):
    models: list[ModelInfo]


class Health(_Body):
    status: Literal["live", "ready"]


class Index(_Body):
    """Where things are."""

    service: str
    version: str
    links: dict[str, str]


class Problem(_Body):
    """An error, as RFC 9457 has it; `code` is stable and meant for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    request_id: str

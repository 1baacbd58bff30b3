"""The bodies of answers. What stands under a field is its description in the interface, too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import BY_CODE
from service.manifest import Manifest, MLPManifest, Task


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ScoredLabel(_Body):
    """A label and what the model gives it."""

    label: str
    """One of `labels`."""
    probability: float
    """0 to 1; what it means says the `task` of the model."""


class Step(_Body):
    """What the model believes after seeing the clip up to and with the frame shown at `time_s`."""

    time_s: float
    """Seconds from the first picture."""
    label: str
    """The likeliest of `labels` so far."""
    probability: float
    """That label's."""
    probabilities: list[float]
    """Those of all labels, in the order of `labels`."""


class ModelName(_Body):
    """Which model answered, and where it ran."""

    name: str
    """As in `?model=`."""
    version: str
    """As in `?version=`."""
    task: Task
    """`single_label`: one label holds, the likeliest, and the probabilities of all labels sum to 1. `multi_label`: any
    number hold, those whose probability is at least 0.5, and even the likeliest need not."""
    sha256: str
    """Of the model file."""
    precision: Literal["fp32", "fp16", "int8"]
    """The numbers that the model computes with."""
    provider: Literal["cpu", "cuda"]
    """Where it ran."""


class VideoFacts(_Body):
    """What was found in the upload. Times are seconds from the first picture."""

    upload_bytes: int
    """Size of the video."""
    container: str
    """FFmpeg's name for the format; one stands for its whole family, such as `mov` for .mp4, .m4v and .3gp."""
    codec: str
    """FFmpeg's name for the coding of the pictures."""
    width: int
    """Pixels, as shown, `rotation` applied."""
    height: int
    """Pixels, as shown, `rotation` applied."""
    duration_s: float
    """From the first picture to the end of the last."""
    frame_rate: float | None
    """Pictures a second on average, where the file says so."""
    num_frames: int
    """Pictures in the stream, counted, not believed."""
    rotation: int
    """Degrees counter-clockwise that the file asks for and that were applied."""
    mirrored: bool
    """Whether the file asks for left and right to be exchanged before that, which was done."""
    num_frames_used: int
    """How many different pictures the model saw; fewer than it has frames where a short clip repeats some."""
    exact: bool
    """Whether each frame is the one that the model's sampling names, bit for bit as if every picture had been decoded.
    False where keyframes near them were taken instead, as the model asks."""
    warnings: list[str]
    """What went otherwise than a player would expect, in words: the file breaks off, broken packets were skipped, the
    header counts other than the stream, the frame rate varies, the pictures were turned or mirrored as the file asks.
    Empty where there is nothing to say."""


class ClipFacts(VideoFacts):
    """What was found in the upload, and which of its frames the model saw. Times are seconds from the first picture."""

    times_s: list[float]
    """When each frame that the model saw is shown. A time stands here twice where its picture was taken twice."""
    pts_s: list[float]
    """The same by the file's own clock, which need not start at 0."""


class StageTimes(_Body):
    """Where the time went, in milliseconds."""

    upload: float
    """Receiving the body."""
    queue: float
    """Waiting for a free decoder."""
    decode: float
    """Probing, decoding and resizing. Of a timeline, what of it the service waited for beside `infer`: both go on at
    once."""
    infer: float
    """Waiting for the batch and running it; of a timeline, for all windows."""
    total: float
    """From the first byte of the body to the answer."""


class Classification(_Body):
    """A clip's class."""

    label: str
    """The likeliest label."""
    probability: float
    """That label's."""
    top_k: list[ScoredLabel]
    """The likeliest labels, best first."""
    over_time: list[Step]
    """One step for each of `clip.times_s`."""
    labels: list[str]
    """All labels of the model, in its own order."""
    model: ModelName
    clip: ClipFacts
    times_ms: StageTimes


class Window(_Body):
    """A part of a video, classified as a clip of its own: the model's state begins anew with each."""

    from_s: float
    """Where it begins, in seconds from the video's first picture."""
    to_s: float
    """Where it ends."""
    label: str
    """The likeliest label."""
    probability: float
    """That label's."""
    top_k: list[ScoredLabel]
    """The likeliest labels, best first."""
    probabilities: list[float]
    """Those of all labels, in the order of `labels`."""
    times_s: list[float]
    """When each frame that the model saw is shown, in seconds from the video's first picture."""
    pts_s: list[float]
    """The same by the file's own clock."""


class Span(_Body):
    """Neighbouring windows for which one label holds. Spans follow each other without a gap; but of a multi-label model
    each label has spans of its own. Where windows overlap, the border is half way between the middles of the two that
    meet there."""

    label: str
    """The label that holds for each of its windows."""
    from_s: float
    """Where it begins, in seconds from the video's first picture."""
    to_s: float
    """Where it ends."""
    probability: float
    """The mean of what its windows give the label."""


class Timeline(_Body):
    """What a video shows from moment to moment.

    The first window begins with the first picture, each further one `stride_s` later; the last is moved back so that it
    ends with the video. A video that is shorter than a window is one window.
    """

    spans: list[Span]
    """Windows of one label merged, by where they begin."""
    windows: list[Window]
    """What the spans are made of."""
    window_s: float
    """As asked for."""
    stride_s: float
    """As asked for, or `window_s`."""
    labels: list[str]
    """All labels of the model, in its own order."""
    model: ModelName
    clip: VideoFacts
    times_ms: StageTimes


_CODES = "Stable, and meant for programs:\n" + "\n".join(
    f"- `{kind.code}` ({kind.status}): {kind.title}." for kind in BY_CODE.values()
)


class Problem(_Body):
    """An error, as RFC 9457 has it; `code` is stable and meant for programs."""

    type: str
    """`urn:ttvideo:error:` and the code."""
    title: str
    """What happened, in words that are the same for every occurrence of the code."""
    status: int
    """The HTTP status."""
    detail: str
    """What was expected, and what came."""
    code: Annotated[str, Field(description=_CODES, json_schema_extra={"enum": list(BY_CODE)})]
    instance: str
    """`urn:ttvideo:request:` and the request's id."""
    request_id: str
    """As in the header X-Request-ID and in the service's log."""


class FileResult(_Body):
    """What became of one of several files."""

    index: int
    """Of the file among those of the request, from 0."""
    file_name: str | None
    """What the client calls it, its last part, without what cannot be printed; null where it has no name."""
    answer: Classification | Timeline | None
    """As for a file alone; null where there is a problem."""
    problem: Problem | None
    """Why there is no answer; else null."""


class Results(_Body):
    """Answers for several files."""

    results: list[FileResult]
    """In the order of the request."""


class ModelInfo(_Body):
    """A model, as its file describes it, and how it is served."""

    name: str
    """As in `?model=`."""
    version: str
    """As in `?version=`."""
    default: bool
    """Whether it answers when a request names no model."""
    provider: Literal["cpu", "cuda"]
    """Where it runs."""
    provider_reason: str | None
    """Why the model does not run on CUDA, where that was open."""
    cuda_graphs: bool
    """Whether runs are recorded as CUDA graphs."""
    cuda_graphs_reason: str | None
    """Why they are not, where that was open."""
    sha256: str
    """Of the model file."""
    refused: str | None
    """Why the file that lies in this one's place now was not taken, where that is so: this one serves on."""
    clip_fault: str | None
    """Why /classify does not take the model, where it does not; /v2 serves it as plain tensors."""
    manifest: Annotated[Manifest | MLPManifest, Field(discriminator="reads", description="What the file says.")]


class AbsentModel(_Body):
    """A model that is not served."""

    name: str
    """Of its folder."""
    version: str
    """Of the folder inside."""
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    """On its way in, on its way out, or neither."""
    reason: str
    """Why; empty while it is being loaded."""


class ModelList(_Body):
    """Every model served."""

    models: list[ModelInfo]
    """By name, versions ascending."""
    absent: list[AbsentModel]
    """Those that were refused or unloaded, or are being loaded."""


class Health(_Body):
    """A probe's answer."""

    status: Literal["live", "ready"]
    """`live`: the process answers; `ready`: it takes clips."""


class Index(_Body):
    """Where things are."""

    service: str
    """Always `ttvideo`."""
    version: str
    """Of the service."""
    links: dict[str, str]
    """Paths by name."""


class InferenceError(_Body):
    """Every answer under /v2 other than 200."""

    error: str
    """What was expected, and what came."""

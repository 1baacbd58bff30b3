"""What /stream says, one JSON object a message, told apart by `type`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.schemas import ModelName, ScoredLabel


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Expected(_Message):
    """What the client is to send: binary messages, and at the end the text `{"type": "end"}`."""

    format: Literal["jpeg", "encoded"]
    """`jpeg`: a picture a message; `encoded`: one video in MPEG-TS, Matroska, WebM or fragmented MP4, cut anywhere."""
    max_message_bytes: int
    """A larger message closes the socket."""
    rate: float | None
    """Pictures a second that count; every one without it."""
    idle_s: float
    """Where nothing comes for so long, the stream is ended."""


class Ready(_Message):
    """The first message."""

    type: Literal["ready"] = "ready"
    request_id: str
    """As in the service's log."""
    model: ModelName
    labels: list[str]
    """All labels of the model, in its own order."""
    expected: Expected


class StreamStep(_Message):
    """What the model believes after a frame and all before it."""

    type: Literal["step"] = "step"
    index: int
    """Of the frame, from 0."""
    time_s: float | None
    """When the frame is shown, in seconds from the first, where the stream says it."""
    label: str
    """The likeliest."""
    probability: float
    """That label's."""
    top_k: list[ScoredLabel]
    """The likeliest labels, best first."""


class End(_Message):
    """After the last step of a stream that its client ended."""

    type: Literal["end"] = "end"
    num_steps: int
    """Frames that the model saw."""
    label: str | None
    """The likeliest after all of them; None where there was none."""
    probability: float | None
    """That label's."""
    top_k: list[ScoredLabel]
    """The likeliest labels, best first."""
    warnings: list[str]
    """What went otherwise than a player would expect."""


class StreamError(_Message):
    """The last message of a stream that cannot go on. The socket is closed after it."""

    type: Literal["error"] = "error"
    code: str
    """As of problems."""
    title: str
    """The same for every occurrence of the code."""
    status: int
    """What HTTP would have said."""
    detail: str
    """What was expected, and what came."""
    request_id: str
    """As in the service's log."""
    num_steps: int
    """Frames that were answered."""

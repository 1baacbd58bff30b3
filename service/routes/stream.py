"""WebSocket /stream: live video in, a label a frame out."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field

from service.engine import answers
from service.engine.batcher import Inference
from service.engine.classifier import Classifier, check_top_k
from service.engine.model import Model
from service.engine.sequences import Sequence
from service.engine.session import probabilities
from service.errors import Busy, InvalidMessage, InvalidParameter, RequestError, SequenceExpired
from service.routes.messages import End, Expected, Ready, StreamError, StreamStep
from service.routes.query import OfModel, read
from service.schemas import ScoredLabel
from service.video.streaming import Pictures, Source

log = logging.getLogger(__name__)
router = APIRouter()

_CLOSE_CODES = {400: 1007, 413: 1009, 415: 1003, 500: 1011, 503: 1013, 504: 1013}
"""Of RFC 6455, for what HTTP would have said; anything else breaks a rule of the service, 1008."""
_BREAKS_A_RULE, _RESTARTS = 1008, 1012
SUBPROTOCOL = "ttvideo"
"""What is spoken, where the client asks for a name: pages do that offer their key beside it."""
CLIENT_GONE = "client_gone"
RETRY_S = 0.05
"""Where the line before the model is full with requests of other kinds, a stream asks again after so long."""
LAST_WORD_S = 2.0
"""How long a client may take to hear why its stream ends."""


class Asked(OfModel):
    """The query of /stream."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    format: Literal["jpeg", "encoded"] = "jpeg"
    rate: Annotated[float, Field(ge=0.001, le=1000)] | None = None


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """One stream, from its first message to its last."""
    classifier: Classifier = websocket.app.state.classifier
    talk = _Talk(websocket, classifier.settings.sequence_idle_s)
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", ()) else None)
    try:
        async with talk.refusing():
            asked = _read(websocket)
            with classifier.repository.use(asked.model, asked.version) as model:
                model.check_pieces()
                top_k = check_top_k(asked.top_k, model)
                with classifier.sequences.open(model) as sequence:
                    async with talk.refusing(sequence), _source(classifier, model, asked) as (source, rate):
                        sequence.busy = lambda: source.pending
                        await talk.say(_ready(talk, classifier, model, asked, rate))
                        await _converse(talk, classifier, sequence, source, top_k)
    except WebSocketDisconnect:
        websocket.state.code = CLIENT_GONE


class _Talk:
    """What is said to a client."""

    def __init__(self, websocket: WebSocket, patience_s: float) -> None:
        self.websocket = websocket
        self.request_id: str = websocket.state.request_id
        self.num_steps = 0
        self._patience_s = patience_s

    async def say(self, message: BaseModel) -> None:
        """Raises SequenceExpired where the client does not read."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self.websocket.send_text(message.model_dump_json())
        except TimeoutError:
            raise SequenceExpired(
                f"expected a client that reads, got one that did not for {self._patience_s:g} s"
            ) from None

    @asynccontextmanager
    async def refusing(self, sequence: Sequence | None = None) -> AsyncIterator[None]:
        """Tell the client what went wrong in the block, and close the socket."""
        try:
            yield
        except RequestError as error:
            await self._refuse(error, sequence)
        except (WebSocketDisconnect, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("unforeseen")
            detail = "an unforeseen error; the service's log tells more under this request's id"
            await self._refuse(RequestError(detail), sequence)

    async def _refuse(self, error: RequestError, sequence: Sequence | None) -> None:
        if sequence is not None:
            sequence.end(error)
        self.websocket.state.code = error.code
        said = StreamError(
            code=error.code,
            title=error.title,
            status=error.status,
            detail=error.detail,
            request_id=self.request_id,
            num_steps=self.num_steps,
        )
        close = _RESTARTS if error.code == "not_ready" else _CLOSE_CODES.get(error.status, _BREAKS_A_RULE)
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self.websocket.send_text(said.model_dump_json())
                await self.websocket.close(close, error.code)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            pass  # it has gone, or does not listen


def _read(websocket: WebSocket) -> Asked:
    asked = read(websocket, Asked)
    if asked.rate is not None and asked.format == "jpeg":
        raise InvalidParameter("rate: expected none with format=jpeg, whose pictures have no time, so that all count")
    return asked


@asynccontextmanager
async def _source(classifier: Classifier, model: Model, asked: Asked) -> AsyncIterator[tuple[Source, float | None]]:
    """What the client will send, and the pictures a second that count."""
    sampling, deadline_s = model.session.clip_manifest().sampling, classifier.settings.deadline_s
    if asked.format == "jpeg":
        yield Pictures(classifier.pool, sampling, deadline_s), None
    else:
        rate = asked.rate or sampling.rate
        async with classifier.live_decoders.open(sampling, rate, deadline_s) as source:
            yield source, rate


def _ready(talk: _Talk, classifier: Classifier, model: Model, asked: Asked, rate: float | None) -> Ready:
    manifest, settings = model.session.clip_manifest(), classifier.settings
    return Ready(
        request_id=talk.request_id,
        model=answers.model_name(model),
        labels=list(manifest.labels),
        expected=Expected(
            format=asked.format,
            max_message_bytes=settings.max_message_bytes,
            rate=rate,
            idle_s=settings.sequence_idle_s,
        ),
    )


async def _converse(talk: _Talk, classifier: Classifier, sequence: Sequence, source: Source, top_k: int) -> None:
    """Until the client ends the stream, or something else does."""
    try:
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(_receive(talk.websocket, sequence, source))
            watching = group.create_task(_until_over(sequence))
            await _answer(talk, classifier, sequence, source, top_k)
            receiving.cancel()
            watching.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    await talk.websocket.close()


async def _until_over(sequence: Sequence) -> None:
    raise await asyncio.shield(sequence.over)


async def _receive(websocket: WebSocket, sequence: Sequence, source: Source) -> None:
    """Hand on what comes. While it is not taken, no more is read. Goes on until the client goes."""
    ended = False
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        sequence.touch()
        data, text = message.get("bytes"), message.get("text") or ""
        if ended:
            raise InvalidMessage("expected nothing after the end of the stream, got more")
        if data:
            await source.feed(data)
        elif data is None and _type_of(text) == "end":
            source.finish()
            ended = True
        else:
            raise InvalidMessage(
                f'expected binary messages that hold something, or the text {{"type": "end"}}, got {text[:100]!r}'
            )
    raise WebSocketDisconnect(message.get("code", 1006))


def _type_of(text: str) -> str | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message.get("type") if isinstance(message, dict) else None


async def _answer(talk: _Talk, classifier: Classifier, sequence: Sequence, source: Source, top_k: int) -> None:
    manifest, deadline_s = sequence.model.session.clip_manifest(), classifier.settings.deadline_s
    best: list[ScoredLabel] = []

    while await source.ready():
        async with classifier.stream_turns:
            piece = await source.take()
            inference = await _step(sequence, piece.frames, time.monotonic() + deadline_s)
        classifier.metrics.frames_decoded.inc(len(piece.frames))
        for time_s, row in zip(piece.times_s, probabilities(inference.logits_over_time, manifest), strict=True):
            best = answers.best(row, manifest.labels, top_k)
            top = best[0]
            await talk.say(
                StreamStep(
                    index=talk.num_steps, time_s=time_s, label=top.label, probability=top.probability, top_k=best
                )
            )
            talk.num_steps += 1
        best = answers.best(probabilities(inference.logits, manifest), manifest.labels, top_k)
    await talk.say(
        End(
            num_steps=talk.num_steps,
            label=best[0].label if best else None,
            probability=best[0].probability if best else None,
            top_k=best,
            warnings=source.warnings,
        )
    )


async def _step(sequence: Sequence, frames: np.ndarray, deadline: float) -> Inference:
    while True:
        try:
            return await sequence.step(frames, deadline)
        except Busy:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)

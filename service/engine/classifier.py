"""A video file in, its class out: decode, wait for a batch, run, answer. The server and the command line share it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from service import __version__
from service.cores import plan_cores
from service.engine import answers
from service.engine.admission import Admission
from service.engine.model import Model
from service.engine.repository import Repository
from service.engine.sequences import Sequences
from service.errors import InvalidParameter
from service.manifest import Manifest
from service.metrics import Metrics
from service.schemas import Classification, Timeline, Window
from service.settings import Settings
from service.spool import Spool
from service.video.assembly import WindowInfo
from service.video.process import prepare
from service.video.sampling import Sampling
from service.video.streaming import LiveDecoders
from service.video.windows import Windowing
from service.video.workers import DecodePool

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5


class Classifier:
    """Decoder processes, models and their queues. `start` before use, `close` after."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.admission = Admission(settings.max_queue, settings.min_upload_rate)
        self.spool = Spool(settings.spool_dir, settings.max_spool_bytes)
        self.sequences = Sequences(
            limit=settings.max_sequences,
            idle_s=settings.sequence_idle_s,
            on_step=self.metrics.sequence_steps.inc,
            on_over=lambda code: self.metrics.sequences_over.labels(code).inc(),
        )
        self.live_decoders = LiveDecoders(settings.max_encoded_streams, settings.decoder_policy())
        self.stream_turns = asyncio.Semaphore(settings.max_queue)
        """Of pieces of streams that are decoded or before a model."""
        self.repository: Repository
        self.pool: DecodePool
        self._started = False

    @property
    def ready(self) -> bool:
        """Warm, and not shutting down."""
        return self._started and not self.admission.draining

    async def start(self) -> None:
        """Load and warm up the models while the decoder processes start.

        Raises:
            StartError: what is wrong with the settings, a model, the provider or FFmpeg.
        """
        prepare()
        settings = self.settings
        self.cores = plan_cores(settings.decode_workers, settings.model_threads)
        log.info("%s", self.cores)
        self.repository = await asyncio.to_thread(
            Repository,
            settings,
            cores=self.cores,
            observe_batch=lambda name, size: self.metrics.batch_size.labels(name).observe(size),
            on_change=self._show_models,
        )
        self.pool = DecodePool(
            self.cores.decode_workers,
            self.repository.max_clip_bytes,
            settings.decoder_policy(),
            on_replace=self.metrics.decode_workers_replaced.inc,
            on_recycle=lambda reason: self.metrics.decode_workers_recycled.labels(reason).inc(),
        )
        try:
            await self.pool.start()
        except BaseException:
            await self.pool.close()
            raise
        await self.repository.start()
        self._started = True
        self._show()

    async def close(self) -> None:
        """Answer everything accepted, then end the processes."""
        if not self._started:
            return
        await self.drain()
        self._started = False
        await self.repository.close()
        await self.pool.close()

    async def drain(self) -> None:
        """Take no more, answer what was accepted, and end every sequence."""
        await asyncio.gather(self.admission.drain(), self.sequences.drain())

    async def answer(self, video: Video, question: Question) -> Classification | Timeline:
        """Answer for one video.

        Raises:
            RequestError: anything from `service.errors` that the file or the load gives rise to.
        """
        if question.windowing is None:
            return await self._classify(video, question)
        return await self._timeline(video, question, question.windowing)

    async def _classify(self, video: Video, question: Question) -> Classification:
        began = time.monotonic()
        deadline, model = video.since + self.settings.deadline_s, question.model
        decoded = await self.pool.decode(video.source, question.sampling, deadline)
        clip = decoded.result
        self.metrics.frames_decoded.inc(len(clip.frames))
        infer_started = time.monotonic()
        inference = await model.classify(clip.frames, deadline)
        times_s = _times(video, began + decoded.queue_s, decoded.decode_s, time.monotonic() - infer_started)
        return answers.classification(model, clip.info, inference, question.top_k, video.num_bytes, times_s)

    async def _timeline(self, video: Video, question: Question, windowing: Windowing) -> Timeline:
        """The decoder is one window ahead of the model, so that one is held here whatever the video's length."""
        began = time.monotonic()
        deadline, model = video.since + self.settings.deadline_s, question.model
        windows: list[Window] = []
        infer_s = 0.0

        async def take(frames: np.ndarray, info: WindowInfo) -> None:
            nonlocal infer_s
            self.metrics.frames_decoded.inc(len(frames))
            infer_started = time.monotonic()
            inference = await model.classify(frames, deadline)
            infer_s += time.monotonic() - infer_started
            windows.append(answers.window(model, info, inference, question.top_k))

        decoded = await self.pool.decode_windows(video.source, question.sampling, windowing, take, deadline)
        times_s = _times(video, began + decoded.queue_s, decoded.decode_s - infer_s, infer_s)
        return answers.timeline(model, decoded.result, windowing, windows, video.num_bytes, times_s)

    def _show(self) -> None:
        """Point the gauges at what they show."""
        metrics = self.metrics
        metrics.build.info({"version": __version__})
        metrics.ready.set_function(lambda: self.ready)
        metrics.sequences.set_function(lambda: len(self.sequences))
        metrics.encoded_streams.set_function(lambda: self.live_decoders.num_live)
        metrics.in_flight.set_function(lambda: self.admission.in_flight)
        metrics.in_flight_limit.set(self.admission.limit)
        metrics.spool_bytes.set_function(lambda: self.spool.used_bytes)
        metrics.spool_bytes_limit.set(self.spool.max_bytes)
        metrics.decode_workers_wanted.set(self.pool.num_workers)
        metrics.decode_workers.set_function(lambda: self.pool.num_alive)
        for layer in self.pool.layers:
            metrics.sandbox.labels(layer.name, layer.detail).set(layer.enforced)
        for part, number in vars(self.cores).items():
            metrics.core_plan.labels(part).set(number)
        metrics.queue_depth.labels("decode").set_function(lambda: self.pool.num_waiting)
        metrics.queue_depth.labels("model").set_function(lambda: sum(m.depth for m in self.repository.models))
        self._show_models()

    def _show_models(self) -> None:
        provider, files, nodes = self.metrics.provider, self.metrics.model, self.metrics.model_nodes
        limits = self.metrics.batch_limit
        for series in (provider, files, nodes, limits):
            series.clear()
        for model in self.repository.models:
            session = model.session
            limits.labels(model.name, model.version).set_function(partial(getattr, model, "fits"))
            provider.labels(model.name, model.version, session.provider, session.provider_reason or "").set(1)
            precision = session.manifest.precision if isinstance(session.manifest, Manifest) else "fp32"
            files.labels(model.name, model.version, precision, session.sha256).set(1)
            for name, count in session.num_nodes.items():
                nodes.labels(model.name, model.version, name).set(count)


@dataclass(frozen=True)
class Video:
    """A video to answer for.

    Attributes:
        source: a file, or the descriptor of one that is open.
        num_bytes, upload_s: of its upload.
        since: when it was there, by `time.monotonic()`; its deadline counts from then on.
    """

    source: Path | int
    num_bytes: int
    upload_s: float = 0.0
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Question:
    """What is asked of a video. The model is from `repository.use`, and good within its block."""

    model: Model
    top_k: int
    sampling: Sampling
    windowing: Windowing | None = None


def check_top_k(top_k: int | None, model: Model) -> int:
    """The number asked for; `DEFAULT_TOP_K`, or all labels where there are fewer, without one.

    Raises:
        InvalidParameter: there are not as many labels.
        NotForClips: it is no model of whole clips.
    """
    num_labels = len(model.session.clip_manifest().labels)
    if top_k is None:
        return min(DEFAULT_TOP_K, num_labels)
    if not 1 <= top_k <= num_labels:
        raise InvalidParameter(f"top_k: expected 1 to {num_labels}, the labels of {model.name}, got {top_k}")
    return top_k


def question(
    model: Model,
    settings: Settings,
    *,
    top_k: int | None = None,
    sampling: Literal["keyframes"] | None = None,
    window_s: float | None = None,
    stride_s: float | None = None,
) -> Question:
    """A question as a client asks it.

    Args:
        top_k: as `check_top_k` takes it.
        sampling: another policy than the model's own.
        window_s, stride_s: for a timeline; the stride is the window without it.

    Raises:
        InvalidParameter: there are not as many labels, or the windows cannot be cut so.
        NotForClips: it is no model of whole clips.
    """
    top_k = check_top_k(top_k, model)
    frames = model.session.clip_manifest().sampling
    if sampling:
        frames = frames.at_keyframes()
    if window_s is None:
        if stride_s is not None:
            raise InvalidParameter(f"stride_s: expected window_s beside it, got {stride_s:g} alone")
        return Question(model, top_k, frames)
    if frames.policy == "keyframes":
        whose = "asked for" if sampling else f"that {model.name} is made for"
        raise InvalidParameter(
            f"window_s: expected frames chosen by time or in a row, got keyframes, {whose}: a window may hold none"
        )
    stride_s = window_s if stride_s is None else stride_s
    if stride_s > window_s:
        raise InvalidParameter(
            f"stride_s: expected at most window_s, {window_s:g}, got {stride_s:g}: some would be unseen"
        )
    try:
        return Question(
            model, top_k, frames, Windowing(window_s=window_s, stride_s=stride_s, max_windows=settings.max_windows)
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise InvalidParameter(f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']}") from error


def _times(video: Video, decode_began: float, decode_s: float, infer_s: float) -> dict[str, float]:
    """Where the time went, for the answer."""
    times_s = {"upload": video.upload_s, "queue": decode_began - video.since, "decode": decode_s, "infer": infer_s}
    return {**times_s, "total": video.upload_s + time.monotonic() - video.since}

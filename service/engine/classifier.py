"""A video file in, its class out: decode, wait for a batch, run, answer. The server and the command line share it."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Literal

import numpy as np

from service import __version__
from service.cores import plan_cores
from service.engine.admission import Admission
from service.engine.batcher import Inference
from service.engine.model import Model
from service.engine.repository import Repository
from service.engine.sequences import Sequences
from service.engine.session import probabilities
from service.errors import InvalidParameter
from service.manifest import Manifest
from service.metrics import Metrics
from service.schemas import Classification, ClipFacts, ModelName, ScoredLabel, StageTimes, Step
from service.settings import Settings
from service.video.process import prepare
from service.video.streaming import LiveDecoders
from service.video.workers import Decoded, DecodePool

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5


class Classifier:
    """Decoder processes, models and their queues. `start` before use, `close` after."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.admission = Admission(settings.max_queue)
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

    async def classify(
        self,
        path: Path,
        model: Model,
        *,
        top_k: int,
        upload_bytes: int,
        upload_s: float = 0.0,
        sampling: Literal["keyframes"] | None = None,
    ) -> Classification:
        """Classify one video file.

        Args:
            model: from `repository.use`, within its block.
            top_k: from `check_top_k`.
            upload_bytes, upload_s: what came before, for the answer.
            sampling: another policy than the model's own.

        Raises:
            RequestError: anything from `service.errors` that the file or the load gives rise to.
        """
        started = time.monotonic()
        deadline = started + self.settings.deadline_s
        frames = model.session.clip_manifest().sampling
        decoded = await self.pool.decode(path, frames.at_keyframes() if sampling else frames, deadline)
        self.metrics.frames_decoded.inc(len(decoded.clip.frames))
        infer_started = time.monotonic()
        inference = await model.classify(decoded.clip.frames, deadline)
        done = time.monotonic()
        times = {
            "upload": upload_s,
            "queue": decoded.queue_s,
            "decode": decoded.decode_s,
            "infer": done - infer_started,
        }
        times["total"] = upload_s + done - started
        return _answer(model, decoded, inference, top_k, times, upload_bytes)

    def _show(self) -> None:
        """Point the gauges at what they show."""
        metrics = self.metrics
        metrics.build.info({"version": __version__})
        metrics.ready.set_function(lambda: self.ready)
        metrics.sequences.set_function(lambda: len(self.sequences))
        metrics.encoded_streams.set_function(lambda: self.live_decoders.num_live)
        metrics.in_flight.set_function(lambda: self.admission.in_flight)
        metrics.in_flight_limit.set(self.admission.limit)
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
        for series in (provider, files, nodes):
            series.clear()
        for model in self.repository.models:
            session = model.session
            provider.labels(model.name, model.version, session.provider, session.provider_reason or "").set(1)
            precision = session.manifest.precision if isinstance(session.manifest, Manifest) else "fp32"
            files.labels(model.name, model.version, precision, session.sha256).set(1)
            for name, count in session.num_nodes.items():
                nodes.labels(model.name, model.version, name).set(count)


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


def _answer(
    model: Model, decoded: Decoded, inference: Inference, top_k: int, times_s: dict[str, float], upload_bytes: int
) -> Classification:
    session, info = model.session, decoded.clip.info
    manifest = session.clip_manifest()
    labels = manifest.labels
    whole = probabilities(inference.logits, manifest)
    over_time = probabilities(inference.logits_over_time, manifest)
    best = [ScoredLabel(label=labels[i], probability=whole[i]) for i in np.argsort(-whole, kind="stable")[:top_k]]
    steps = [
        Step(time_s=time_s, label=labels[top], probability=row[top], probabilities=row)
        for time_s, row, top in zip(info.times_s, over_time.tolist(), over_time.argmax(-1).tolist(), strict=True)
    ]
    return Classification(
        label=best[0].label,
        probability=best[0].probability,
        top_k=best,
        over_time=steps,
        labels=list(labels),
        model=ModelName(
            name=manifest.name,
            version=manifest.version,
            sha256=session.sha256,
            precision=manifest.precision,
            provider=session.provider,
        ),
        clip=ClipFacts(**vars(info), upload_bytes=upload_bytes, num_frames_used=len(set(info.times_s))),
        times_ms=StageTimes(**{stage: round(1e3 * spent, 3) for stage, spent in times_s.items()}),
    )

"""A model at work: its session, the line before it, and the requests that hold it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from service.engine.batcher import Batcher, Inference, State
from service.engine.session import Session, probabilities
from service.engine.signature import Tensor
from service.engine.statistics import Statistics
from service.engine.turns import Turns
from service.errors import NotForClips, NotForPieces
from service.settings import Settings
from service.trace import stage

PROBABILITIES = "probabilities"
"""An output that every model has beside those of its graph: what its logits mean, by task and temperature."""


class Model:
    """One loaded file. `start` before use; `retire` lets those who use it finish.

    Args:
        statistics: go on counting where the file before it stopped.
        observe_batch: called with the size of each batch.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        *,
        statistics: Statistics | None = None,
        observe_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.session = session
        self.name, self.version = session.manifest.name, session.manifest.version
        self.max_batch = settings.max_batch
        self.statistics = statistics or Statistics()
        self._observe_batch = observe_batch
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._line: Batcher | Turns
        self.states = session.states
        """What it carries from one piece of a clip to the next; nothing where clips come whole."""
        self.initial_state: State = {state.input: np.zeros(state.shape, state.dtype) for state in self.states}
        """Before the first piece."""
        try:
            max_frames = settings.max_batch * session.clip_manifest().sampling.clip_shape[0]
            self.clip_fault: str | None = None
            """Why it cannot classify whole clips."""
            self._line = Batcher(
                session.run,
                max_batch=max_frames if self.states else settings.max_batch,  # a piece may be one frame
                max_queue_delay_s=settings.max_queue_delay_ms / 1e3,
                max_queue=settings.max_queue,
                max_frames=max_frames,
                place=session.place,
                room=session.room,
                warm_up=session.warm_up,
                stop=session.stop,
                observe_batch=self._ran,
            )
        except NotForClips as error:
            self.clip_fault = error.detail
            self._line = Turns(session.run_in_parts, max_queue=settings.max_queue, place=session.place)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.session.signature.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        classes = len(self.session.manifest.labels)
        return (*self.session.signature.outputs, Tensor(PROBABILITIES, "FP32", ("batch", classes)))

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self._line.depth

    @property
    def fits(self) -> int:
        """Clips that a run may take now."""
        return self._line.fits if isinstance(self._line, Batcher) else self.max_batch

    def check_pieces(self) -> None:
        """Raise NotForPieces where it takes no clip in pieces."""
        if not self.states:
            raise NotForPieces(
                f"{self.name}/{self.version} keeps no state between requests: expected a model that was exported with "
                "--streaming"
            )

    async def start(self) -> None:
        if isinstance(self._line, Batcher):
            await self._line.start()

    @contextmanager
    def use(self) -> Iterator[Model]:
        """Until the end of the block the model stays, whatever takes its place."""
        self._num_users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._unused.set()

    async def retire(self) -> None:
        """Wait for the last user, then let go of the session. Nobody may find the model any more."""
        await self._unused.wait()
        if isinstance(self._line, Batcher):
            await self._line.close()
        else:
            self._line.close()

    async def classify(self, frames: np.ndarray, deadline: float) -> Inference:
        """Run on one whole clip, together with others.

        Args:
            frames: uint8 [time, height, width, 3].
            deadline: by `time.monotonic()`.

        Raises:
            NotForClips: the model takes something else.
            Busy, NotReady, DeadlineExceeded, RequestError: from the batcher.
        """
        return await self.step(frames, deadline, None, self.initial_state)

    async def step(self, frames: np.ndarray, deadline: float, length: int | None, state: State) -> Inference:
        """Run on a piece of a clip, together with others.

        Args:
            length: frames that count; all of them without it.
            state: from the piece before it, or the `initial_state`.

        Raises: as `classify`.
        """
        if not isinstance(self._line, Batcher):
            raise NotForClips(self.clip_fault or "")
        with self._failures_counted() as started:
            inference = await self._line.infer(frames, deadline, length, state)
        spent = time.monotonic() - started
        self.statistics.answered(spent, inference.queue_s, inference.gather_s, inference.run_s)
        return inference

    async def infer(self, inputs: dict[str, np.ndarray], deadline: float) -> dict[str, np.ndarray]:
        """Run on tensors that fit `inputs`; every one of `outputs`. Without states a clip is at its beginning.

        Raises:
            Busy, NotReady, DeadlineExceeded, RequestError.
        """
        with self._failures_counted() as started:
            if isinstance(self._line, Batcher):
                shares = await self._infer_clips(self._line, inputs, deadline)
                outputs, last = self.tensors(shares), max(shares, key=lambda share: share.queue_s)
                spent = last.queue_s, last.gather_s, last.run_s
            else:
                outcome = await self._line.infer(inputs, deadline)
                outputs, spent = self._with_probabilities(outcome.outputs), (outcome.queue_s, 0.0, outcome.run_s)
                self._ran(len(outputs["logits"]), 0.0, outcome.run_s)
        self.statistics.answered(time.monotonic() - started, *spent)
        return outputs

    def tensors(self, shares: Sequence[Inference]) -> dict[str, np.ndarray]:
        """Every one of `outputs`, of clips or pieces of one length."""
        return self._with_probabilities(
            {
                "logits": np.stack([share.logits for share in shares]),
                "logits_over_time": np.stack([share.logits_over_time for share in shares]),
                **{one.output: np.stack([share.state[one.input] for share in shares]) for one in self.states},
            }
        )

    async def _infer_clips(self, batcher: Batcher, inputs: dict[str, np.ndarray], deadline: float) -> list[Inference]:
        """Each clip stands in line for itself, beside those of other requests."""

        def state(row: int) -> State:
            return {name: inputs[name][row] if name in inputs else zero for name, zero in self.initial_state.items()}

        tasks = [
            asyncio.create_task(batcher.infer(clip, deadline, int(length), state(row)))
            for row, (clip, length) in enumerate(zip(inputs["frames"], inputs["lengths"], strict=True))
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _with_probabilities(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs | {
            PROBABILITIES: probabilities(outputs["logits"], self.session.manifest).astype(np.float32),
        }

    def _ran(self, batch: int, gather_s: float, run_s: float) -> None:
        self._observe_batch(batch)
        self.statistics.ran(batch, gather_s, run_s)

    @contextmanager
    def _failures_counted(self) -> Iterator[float]:
        """The time of the start."""
        started = time.monotonic()
        try:
            with stage("infer"):
                yield started
        except Exception:
            self.statistics.fail.add(time.monotonic() - started)
            raise

"""A model file, loaded, checked against its manifest, and run."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnxruntime

from service.engine.batcher import State
from service.engine.cuda import Bound, Device, batch_sizes
from service.engine.provider import CPU, CUDA, Choice
from service.engine.signature import Signature, check, signature, zeros
from service.errors import InvalidModel, NotForClips, OutOfMemory, ProviderUnavailable
from service.manifest import Manifest, MLPManifest, ModelFile, Task, read_manifest

log = logging.getLogger(__name__)

_NO_MEMORY = re.compile(
    r"Failed to allocate memory|smaller than requested bytes|bad_alloc|out of memory|_ALLOC_FAILED", re.IGNORECASE
)
"""What ONNX Runtime, CUDA, cuBLAS and cuDNN say of it. There is no class of error for it."""
_NO_GRAPH = "cannot use the graph capture feature"


@dataclass(frozen=True)
class Resources:
    """What sessions run with, and share.

    Args:
        threads: of one run on the CPU.
        runs: how many runs may go on at once, of all sessions that hold these.
        max_batch: the largest batch in use.
    """

    threads: int = 1
    runs: int = 1
    max_batch: int = 1
    device: Device = field(default_factory=Device)
    places: SimpleQueue[None] = field(default_factory=SimpleQueue, init=False)
    """One for each run: a semaphore at a fraction of its cost."""

    def __post_init__(self) -> None:
        for _ in range(self.runs):
            self.places.put(None)


class Session:
    """One model file on one provider, warmed up.

    Args:
        path: the ONNX file; where there is `model`, only its name.
        choice: from `provider.choose`.
        resources: shared with the other sessions.
        model: what the file would hold.
        strict: fail where `choice` cannot be had, and do not fall back to the CPU.

    Raises:
        InvalidModel: the file is no model of this service; says what was expected and what came.
        ProviderUnavailable: `strict`, and the provider did not take the model.
    """

    def __init__(
        self,
        path: Path,
        choice: Choice,
        resources: Resources | None = None,
        *,
        model: bytes | None = None,
        strict: bool = False,
    ) -> None:
        try:
            model = path.read_bytes() if model is None else model
        except OSError as error:
            raise InvalidModel(f"{path}: cannot be read: {error.strerror}") from error
        self.path = path
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._resources = resources or Resources()
        self.graphs_reason: str | None = None
        """Why runs are not recorded as CUDA graphs, where that was open."""
        try:
            self._load_on_cuda(model, choice) if choice.name == "cuda" else self._load(model, choice)
        except _CudaFailed as failure:
            if strict:
                raise ProviderUnavailable(f"{path}: CUDA was asked for and not had: {failure}") from failure
            log.warning("%s: on the CPU, since CUDA failed: %s", path, failure)
            self.graphs_reason = None
            self._load(model, Choice("cpu", str(failure)))

    def _load_on_cuda(self, model: bytes, choice: Choice) -> None:
        """With CUDA graphs where they are wanted and can be had."""
        graphs = self._resources.device.graphs
        if graphs != "off":
            try:
                self._load(model, choice, graphs=True)
                return
            except _CudaFailed as failure:
                if graphs == "on" and _NO_GRAPH in str(failure):
                    raise InvalidModel(
                        f"{self.path}: expected a model that CUDA graphs can record: {failure}"
                    ) from failure
                if graphs == "on":
                    raise
                log.info("%s: without CUDA graphs: %s", self.path, failure)
                self.graphs_reason = str(failure)
        self._load(model, choice)

    def _load(self, model: bytes, choice: Choice, *, graphs: bool = False) -> None:
        self.provider, self.provider_reason = choice.name, choice.reason
        self.graphs = graphs
        """Whether runs are recorded as CUDA graphs."""
        self._session = _open(model, self.path, choice, self._resources, graphs=graphs)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.manifest: Manifest | MLPManifest = read_manifest(metadata, source=str(self.path))
        self.signature: Signature = signature(self.manifest)
        self.states = self.manifest.states if isinstance(self.manifest, Manifest) else ()
        check(self._session, self.signature, self.path)
        self._names = [tensor.name for tensor in self.signature.outputs]
        self._options = onnxruntime.RunOptions()
        self.num_nodes = nodes_by_provider(self._session)
        """By ONNX Runtime's name of the provider."""
        self._bound: Bound | None = None
        if self.provider == "cuda":
            self._bound = Bound(
                self._session,
                self.signature,
                sizes=batch_sizes(self._resources.max_batch),
                time=self._time_steps,
                device_id=self._resources.device.id,
                graphs=graphs,
            )
        self.warm_up_s = self._try_out()

    def clip_manifest(self) -> Manifest:
        """The manifest of a model that classifies whole clips.

        Raises:
            NotForClips: the model takes something else; says what.
        """
        manifest, name = self.manifest, f"{self.manifest.name}/{self.manifest.version}"
        if isinstance(manifest, MLPManifest):
            raise NotForClips(f"{name}: expected a model that reads clips, got one that reads {manifest.reads}")
        return manifest

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for runs, for a block; waits until there is one."""
        self._resources.places.get()
        try:
            yield
        finally:
            self._resources.places.put(None)

    def run(
        self, frames: np.ndarray, lengths: np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, np.ndarray, State]:
        """Classify a batch of clips, or of pieces of clips.

        Args:
            state: of a streaming model what came with the pieces before; nothing of others.

        Shape: frames uint8 [batch, time, height, width, 3], lengths int32 [batch], state [batch, ...] each
            -> logits [batch, classes], logits_over_time [batch, time, classes], the state after them.
        """
        outputs = self.run_tensors({"frames": frames, "lengths": lengths, **(state or {})})
        # Each output is the next one's input by the manifest's own pairs, whatever their order or names.
        after = {one.input: outputs[one.output] for one in self.states}
        return outputs["logits"], outputs["logits_over_time"], after

    def run_tensors(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the signature, for every input of it. To be called in a `place`.

        Raises:
            OutOfMemory: there is not the memory for this batch; a smaller one may do.
        """
        options = self._options = onnxruntime.RunOptions()
        try:
            if self._bound is not None:
                return self._bound.run(inputs, options)
            outputs = self._session.run(self._names, inputs, options)
            return dict(zip(self._names, map(np.asarray, outputs), strict=True))
        except Exception as error:
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise OutOfMemory("expected memory for a run of the model, there is not enough") from error
            raise

    def run_in_parts(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`run_tensors`, in halves where there is not the memory for all rows at once.

        Raises:
            OutOfMemory: there is not the memory for one row.
        """
        rows = len(next(iter(inputs.values())))
        try:
            return self.run_tensors(inputs)
        except OutOfMemory:
            if rows == 1:
                raise
        parts = [
            self.run_in_parts({name: values[part] for name, values in inputs.items()})
            for part in (slice(rows // 2), slice(rows // 2, rows))
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def stop(self) -> None:
        """Have the latest run end after the node that it is at, and fail, where it still goes on."""
        self._options.terminate = True

    def room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory for frames of this shape, from which they come to the model soonest. Good until the next call."""
        bound = self._bound.room(shape) if self._bound is not None else None
        return np.empty(shape, np.uint8) if bound is None else bound

    def warm_up(self) -> None:
        """Run in every batch size in use, where that makes the first run of each slow. To be called in the thread that
        will run the model: what CUDA keeps for a run it keeps for its thread.

        Raises:
            InvalidModel: a batch cannot be run.
        """
        if self._bound is None:
            return  # on the CPU a first run costs half a millisecond more than the next
        for batch in batch_sizes(self._resources.max_batch):
            try:
                with self.place():
                    self.run_tensors(self._nothing(batch, self._time_steps))
            except OutOfMemory as error:
                log.warning("%s: no memory for a batch of %d: %s", self.path, batch, error.detail)
                return
            except Exception as error:
                raise InvalidModel(f"{self.path}: a run on a batch of {batch} failed: {error}") from error

    @property
    def _time_steps(self) -> int:
        return self.manifest.sampling.clip_shape[0] if isinstance(self.manifest, Manifest) else 1

    def _nothing(self, batch: int, steps: int) -> dict[str, np.ndarray]:
        inputs = zeros(self.signature.inputs, batch=batch, time=steps)
        if "lengths" in inputs:
            inputs["lengths"].fill(self._time_steps)
        return inputs

    def _try_out(self) -> float:
        """Run once alone and once in company, and look at what comes out."""
        started = time.perf_counter()
        for batch, steps in ((1, self._time_steps), (2, self._time_steps + 1)):
            inputs = self._nothing(batch, steps)
            try:
                with self.place():
                    outputs = self.run_tensors(inputs)
            except Exception as error:
                if self.provider == "cuda":
                    raise _CudaFailed(f"a run failed: {error}") from error
                raise InvalidModel(f"{self.path}: a run on {_sizes(inputs)} failed: {error}") from error
            for name, expected in zeros(self.signature.outputs, batch=batch, time=steps).items():
                if outputs[name].shape != expected.shape:
                    raise InvalidModel(
                        f"{self.path}: expected {name} {expected.shape} for {_sizes(inputs)}, got {outputs[name].shape}"
                    )
            if not np.isfinite(outputs["logits"]).all():
                raise InvalidModel(f"{self.path}: expected finite logits for zeros, got {outputs['logits'].tolist()}")
        return time.perf_counter() - started


def _sizes(inputs: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {value.shape}" for name, value in inputs.items())


def probabilities(logits: np.ndarray, manifest: ModelFile) -> np.ndarray:
    """What the model believes, by the manifest's task and temperature.

    Shape: [..., classes] -> [..., classes].
    """
    scaled = np.asarray(logits, np.float64) / manifest.temperature
    if manifest.task == "multi_label":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scaled)))  # the sigmoid, without overflow
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def holding(chances: np.ndarray, task: Task) -> np.ndarray:
    """Which labels hold by their probabilities: the likeliest alone, or, of a multi-label model, those of at least a
    half.

    Shape: [..., classes] -> bool [..., classes].
    """
    if task == "multi_label":
        return np.asarray(chances >= 0.5)
    return np.asarray(np.arange(chances.shape[-1]) == chances.argmax(-1)[..., None])


class _CudaFailed(Exception):
    """CUDA looked usable and was not."""


def _open(
    model: bytes, path: Path, choice: Choice, resources: Resources, *, graphs: bool
) -> onnxruntime.InferenceSession:
    cuda: list[Any] = [(CUDA, resources.device.options(graphs=graphs)), CPU]
    providers = cuda if choice.name == "cuda" else [CPU]
    try:
        session = onnxruntime.InferenceSession(
            model, session_options(resources.threads), providers=providers, enable_fallback=0
        )
    except Exception as error:
        if choice.name == "cuda":
            raise _CudaFailed(f"the session could not be made: {error}") from error
        raise InvalidModel(f"{path}: ONNX Runtime cannot load it: {error}") from error
    if choice.name == "cuda" and CUDA not in session.get_providers():
        raise _CudaFailed(f"ONNX Runtime fell back to {', '.join(session.get_providers())}")
    return session


def nodes_by_provider(session: onnxruntime.InferenceSession) -> Counter[str]:
    """How many nodes of the graph each provider runs, by ONNX Runtime's own account."""
    parts = session.get_provider_graph_assignment_info()
    return Counter(part.ep_name for part in parts for _ in part.get_nodes())


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How a model runs that is served, or measured for it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    return options

"""A model file, loaded, checked against its manifest, and run."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service.cores import usable_cores
from service.engine.provider import CPU, CUDA, Choice
from service.engine.signature import Signature, check, signature, zeros
from service.errors import InvalidModel, NotForClips, ProviderUnavailable
from service.manifest import Manifest, MLPManifest, ModelFile, read_manifest

log = logging.getLogger(__name__)


class Session:
    """One model file on one provider, warmed up.

    Args:
        path: the ONNX file; where there is `model`, only its name.
        choice: from `provider.choose`.
        model: what the file would hold.
        strict: fail where `choice` cannot be had, and do not fall back to the CPU.

    Raises:
        InvalidModel: the file is no model of this service; says what was expected and what came.
        ProviderUnavailable: `strict`, and the provider did not take the model.
    """

    def __init__(
        self, path: Path, choice: Choice, *, model: bytes | None = None, device_id: int = 0, strict: bool = False
    ) -> None:
        try:
            model = path.read_bytes() if model is None else model
        except OSError as error:
            raise InvalidModel(f"{path}: cannot be read: {error.strerror}") from error
        self.path = path
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._load(model, choice, device_id)
        except _CudaFailed as failure:
            if strict:
                raise ProviderUnavailable(f"{path}: CUDA was asked for and not had: {failure}") from failure
            log.warning("%s: on the CPU, since CUDA failed: %s", path, failure)
            self._load(model, Choice("cpu", str(failure)), device_id)

    def _load(self, model: bytes, choice: Choice, device_id: int) -> None:
        self.provider, self.provider_reason = choice.name, choice.reason
        self._session = _open(model, self.path, choice, device_id)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.manifest: Manifest | MLPManifest = read_manifest(metadata, source=str(self.path))
        self.signature: Signature = signature(self.manifest)
        check(self._session, self.signature, self.path)
        self.warm_up_s = self._warm_up()

    def clip_manifest(self) -> Manifest:
        """The manifest of a model that classifies whole clips.

        Raises:
            NotForClips: the model takes something else; says what.
        """
        manifest, name = self.manifest, f"{self.manifest.name}/{self.manifest.version}"
        if isinstance(manifest, MLPManifest):
            raise NotForClips(f"{name}: expected a model that reads clips, got one that reads {manifest.reads}")
        if manifest.states:
            states = ", ".join(state.input for state in manifest.states)
            raise NotForClips(
                f"{name}: expected a model of whole clips, got a streaming one, which takes pieces and its state "
                f"({states}) with each"
            )
        return manifest

    def run(self, frames: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify a batch of whole clips.

        Shape: frames uint8 [batch, time, height, width, 3], lengths int32 [batch]
            -> logits [batch, classes], logits_over_time [batch, time, classes].
        """
        outputs = self._session.run(["logits", "logits_over_time"], {"frames": frames, "lengths": lengths})
        return np.asarray(outputs[0]), np.asarray(outputs[1])

    def run_tensors(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the signature, for every input of it."""
        names = [tensor.name for tensor in self.signature.outputs]
        return dict(zip(names, map(np.asarray, self._session.run(names, inputs)), strict=True))

    def _warm_up(self) -> float:
        """Run once alone and once in company, and look at what comes out."""
        started = time.perf_counter()
        time_steps = self.manifest.sampling.clip_shape[0] if isinstance(self.manifest, Manifest) else 1
        for batch, steps in ((1, time_steps), (2, time_steps + 1)):
            inputs = zeros(self.signature.inputs, batch=batch, time=steps)
            if "lengths" in inputs:
                inputs["lengths"].fill(time_steps)
            try:
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


class _CudaFailed(Exception):
    """CUDA looked usable and was not."""


def _open(model: bytes, path: Path, choice: Choice, device_id: int) -> onnxruntime.InferenceSession:
    options = session_options(usable_cores())
    cuda: list[Any] = [(CUDA, {"device_id": device_id, "cudnn_conv_algo_search": "HEURISTIC"}), CPU]
    providers = cuda if choice.name == "cuda" else [CPU]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        if choice.name == "cuda":
            raise _CudaFailed(f"the session could not be made: {error}") from error
        raise InvalidModel(f"{path}: ONNX Runtime cannot load it: {error}") from error
    if choice.name == "cuda" and CUDA not in session.get_providers():
        raise _CudaFailed(f"ONNX Runtime fell back to {', '.join(session.get_providers())}")
    return session


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How a model runs that is served, or measured for it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options

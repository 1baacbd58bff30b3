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
from service.errors import InvalidModel, ProviderUnavailable
from service.manifest import Manifest

log = logging.getLogger(__name__)


class Session:
    """One model file on one provider, warmed up.

    Args:
        path: the ONNX file.
        choice: from `provider.choose`.
        strict: fail where `choice` cannot be had, and do not fall back to the CPU.

    Raises:
        InvalidModel: the file is no model of this service; says what was expected and what came.
        ProviderUnavailable: `strict`, and the provider did not take the model.
    """

    def __init__(self, path: Path, choice: Choice, *, device_id: int = 0, strict: bool = False) -> None:
        try:
            model = path.read_bytes()
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
        self.manifest = Manifest.from_metadata(metadata, source=str(self.path))
        if self.manifest.states:
            states = ", ".join(state.input for state in self.manifest.states)
            raise InvalidModel(
                f"{self.path}: expected a model of whole clips, got a streaming one, which takes pieces and its state "
                f"({states}) with each; export it without --streaming"
            )
        _check_signature(self._session, self.manifest, self.path)
        self.warm_up_s = self._warm_up()

    def run(self, frames: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify a batch.

        Shape: frames uint8 [batch, time, height, width, 3], lengths int32 [batch]
            -> logits [batch, classes], logits_over_time [batch, time, classes].
        """
        outputs = self._session.run(["logits", "logits_over_time"], {"frames": frames, "lengths": lengths})
        return np.asarray(outputs[0]), np.asarray(outputs[1])

    def _warm_up(self) -> float:
        """Run once alone and once in company, and look at what comes out."""
        started = time.perf_counter()
        time_steps, height, width, _ = self.manifest.sampling.clip_shape
        num_labels = len(self.manifest.labels)
        for batch, steps in ((1, time_steps), (2, time_steps + 1)):
            frames = np.zeros((batch, steps, height, width, 3), np.uint8)
            try:
                logits, over_time = self.run(frames, np.full(batch, time_steps, np.int32))
            except Exception as error:
                if self.provider == "cuda":
                    raise _CudaFailed(f"a run failed: {error}") from error
                raise InvalidModel(f"{self.path}: a run on {batch} x {steps} frames failed: {error}") from error
            expected = (batch, num_labels), (batch, steps, num_labels)
            if (logits.shape, over_time.shape) != expected:
                raise InvalidModel(
                    f"{self.path}: expected logits {expected[0]} and logits_over_time {expected[1]} for "
                    f"{batch} x {steps} frames, got {logits.shape} and {over_time.shape}"
                )
            if not np.isfinite(logits).all():
                raise InvalidModel(f"{self.path}: expected finite logits for a black clip, got {logits.tolist()}")
        return time.perf_counter() - started


def probabilities(logits: np.ndarray, manifest: Manifest) -> np.ndarray:
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
    options = _options()
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


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest, path: Path) -> None:
    _, height, width, _ = manifest.sampling.clip_shape
    classes = len(manifest.labels)
    expected_inputs = {
        "frames": ("tensor(uint8)", (None, None, height, width, 3)),
        "lengths": ("tensor(int32)", (None,)),
    }
    expected_outputs = {
        "logits": ("tensor(float)", (None, classes)),
        "logits_over_time": ("tensor(float)", (None, None, classes)),
    }
    for kind, found, expected in (
        ("inputs", session.get_inputs(), expected_inputs),
        ("outputs", session.get_outputs(), expected_outputs),
    ):
        came = {node.name: (node.type, tuple(node.shape)) for node in found}
        if kind == "outputs":
            came = {name: came[name] for name in came if name in expected}
        if came.keys() != expected.keys() or not all(_fits(*came[name], *expected[name]) for name in expected):
            raise InvalidModel(f"{path}: expected {kind} {_spell(expected)}, got {_spell(came)}")


def _fits(type_: str, shape: tuple, expected_type: str, expected: tuple) -> bool:
    """A None of `expected` must be dynamic; a number may be left dynamic by the file."""
    return (
        type_ == expected_type
        and len(shape) == len(expected)
        and all(
            not isinstance(d, int) if e is None else d == e or not isinstance(d, int)
            for d, e in zip(shape, expected, strict=True)
        )
    )


def _spell(signature: dict[str, tuple[str, tuple]]) -> str:
    return (
        ", ".join(
            f"{name} {type_}[{', '.join('dynamic' if d is None else str(d) for d in shape)}]"
            for name, (type_, shape) in signature.items()
        )
        or "nothing"
    )

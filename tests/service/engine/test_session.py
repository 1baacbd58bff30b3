"""Loading a model file: what is refused, with which words; what a run gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.engine.provider import Choice
from service.engine.session import Session, probabilities
from service.errors import InvalidModel, ProviderUnavailable
from service.manifest import Manifest, MLPManifest, ModelFile, State
from tests.service import onnx_models

CPU_CHOICE = Choice("cpu", "because")


def constant_model(about: Manifest, **shape: Any) -> onnx.ModelProto:
    """Zeros of the right shapes for one batch and time only, whatever it claims."""
    constants = {"a": np.zeros((1, 4), np.float32), "b": np.zeros((1, 8, 4), np.float32)}
    nodes = [helper.make_node("Identity", ["a"], ["logits"]), helper.make_node("Identity", ["b"], ["logits_over_time"])]
    return onnx_models.model(nodes, constants, about, 24, 32, **shape)


def relabelled(made_for: Manifest, says: ModelFile | None) -> onnx.ModelProto:
    """A model made for one manifest that carries another, or none."""
    proto = onnx_models.colours(made_for)
    del proto.metadata_props[:]
    if says is not None:
        helper.set_model_props(proto, says.to_metadata())
    return proto


def first_only_model(about: Manifest) -> onnx.ModelProto:
    """Answers only the first clip of a batch."""
    proto = onnx_models.colours(about)
    proto.graph.node.pop()
    for name, value in (("start", 0), ("end", 1)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))
    proto.graph.node.append(helper.make_node("Slice", ["picked", "start", "end"], ["logits"]))
    return proto


def infinite_model(about: Manifest) -> onnx.ModelProto:
    proto = onnx_models.colours(about)
    for constant in proto.graph.initializer:
        if constant.name == "bias":
            constant.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.inf, np.float32), "bias"))
    return proto


def streaming_model(about: Manifest) -> onnx.ModelProto:
    state = State(input="h", output="next_h", dtype="float32", shape=(1, 4))
    return relabelled(about, about.model_copy(update={"states": (state,)}))


def image_model(about: Manifest) -> onnx.ModelProto:
    shared = about.model_dump(include=set(ModelFile.model_fields))
    reads = {"reads": "images", "input_shape": (24, 32, 3), "mean": (0.0,), "std": (1.0,)}
    network = {"layers": (), "activation": "relu", "num_parameters": 1, "compression": 1.0}
    return relabelled(about, MLPManifest.model_validate(shared | reads | network))


def test_a_good_file_is_loaded_and_run(models: Path) -> None:
    path = models / "colours/1/model.onnx"
    session = Session(path, CPU_CHOICE)
    assert session.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (session.provider, session.provider_reason) == ("cpu", "because")
    assert session.manifest.name == "colours"
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 24, 32, 3), np.uint8)
    lengths = np.array([9, 4, 1], np.int32)
    logits, over_time = session.run(frames, lengths)
    assert (logits.shape, over_time.shape) == ((3, 4), (3, 9, 4))
    for i, length in enumerate(lengths):
        np.testing.assert_allclose(logits[i], over_time[i, length - 1], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda about: relabelled(about, None), "expected the metadata key 'ttvideo.manifest'"),
        (lambda about: constant_model(about, time=8), r"got frames tensor\(uint8\)\[batch, 8, 24, 32, 3\]"),
        (lambda about: constant_model(about, batch=1), r"got frames tensor\(uint8\)\[1, time, 24, 32, 3\]"),
        (
            lambda about: constant_model(about, frames_type=TensorProto.FLOAT),
            r"expected inputs frames tensor\(uint8\)\[dynamic, dynamic, 24, 32, 3\].*got frames tensor\(float\)",
        ),
        (lambda about: constant_model(about, frames_name="video"), r"expected inputs frames .*got video"),
        (
            lambda about: relabelled(onnx_models.manifest(labels=tuple("abcde")), about),
            r"expected outputs logits tensor\(float\)\[dynamic, 4\].*got logits tensor\(float\)\[batch, 5\]",
        ),
        (constant_model, r"expected outputs .*got logits tensor\(float\)\[1, 4\]"),
        (first_only_model, r"expected logits \(2, 4\) for frames \(2, 9, 24, 32, 3\), .*, got \(1, 4\)"),
        (infinite_model, "expected finite logits"),
        (streaming_model, r"expected inputs .*, h tensor\(float\)\[dynamic, 1, 4\], got frames .*, lengths .*"),
        (image_model, r"expected inputs images tensor\(uint8\)\[dynamic, 24, 32, 3\], got frames"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected_and_what_came(
    tmp_path: Path, make: Callable[[Manifest], onnx.ModelProto], words: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make(onnx_models.manifest()), str(path))
    with pytest.raises(InvalidModel, match=words) as caught:
        Session(path, CPU_CHOICE)
    assert str(path) in str(caught.value)


def test_no_file_and_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read"):
        Session(tmp_path / "model.onnx", CPU_CHOICE)
    (tmp_path / "model.onnx").write_text("not onnx")
    with pytest.raises(InvalidModel, match="ONNX Runtime cannot load it"):
        Session(tmp_path / "model.onnx", CPU_CHOICE)


def test_a_session_that_fell_back_in_silence_is_caught(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession

    def without_cuda(model: bytes, options: Any, providers: Any, **others: Any) -> Any:
        return real(model, options, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    path = models / "colours/1/model.onnx"
    with pytest.raises(ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        Session(path, Choice("cuda"), strict=True)
    session = Session(path, Choice("cuda"))
    assert session.provider == "cpu"
    assert session.provider_reason == "ONNX Runtime fell back to CPUExecutionProvider"


def test_cuda_that_fails_at_its_first_run_is_caught(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where cuDNN does not fit."""

    class OnCuda(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, options: Any, providers: Any, **others: Any) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"], **others)
            self.claims = [one if isinstance(one, str) else one[0] for one in providers]

        def get_providers(self) -> list[str]:
            return self.claims

        def run(self, *arguments: Any) -> Any:
            if "CUDAExecutionProvider" in self.claims:
                raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")
            return super().run(*arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    path = models / "colours/1/model.onnx"
    with pytest.raises(ProviderUnavailable, match="a run failed: CUDNN_STATUS_NOT_INITIALIZED"):
        Session(path, Choice("cuda"), strict=True)
    session = Session(path, Choice("cuda"))
    assert session.provider == "cpu"
    assert session.provider_reason == "a run failed: CUDNN_STATUS_NOT_INITIALIZED"


def test_probabilities() -> None:
    logits = np.array([[0.0, 1.0, 2.0, -1.0], [1000.0, 0.0, -1000.0, 0.0]])
    single = probabilities(logits, onnx_models.manifest(temperature=2.0))
    np.testing.assert_allclose(single[0], np.exp(logits[0] / 2) / np.exp(logits[0] / 2).sum())
    np.testing.assert_allclose(single.sum(-1), 1)
    multi = probabilities(logits, onnx_models.manifest(task="multi_label"))
    np.testing.assert_allclose(multi[0], 1 / (1 + np.exp(-logits[0])))
    np.testing.assert_allclose(multi[1], [1, 0.5, 0, 0.5])

"""Loading a model file: what is refused, with which words; what a run gives."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.engine.provider import Choice
from service.engine.session import Resources, Session, holding, probabilities, session_options
from service.errors import InvalidModel, OutOfMemory, ProviderUnavailable
from service.manifest import Manifest, MLPManifest, ModelFile, State
from tests.service import onnx_models
from tests.service.conftest import PATIENCE_S

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
    logits, over_time, _ = session.run(frames, lengths)
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

        def run_with_iobinding(self, *arguments: Any) -> Any:
            raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")

    on_the_host = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    monkeypatch.setattr(
        onnxruntime.OrtValue,
        "ortvalue_from_shape_and_type",
        staticmethod(lambda shape, datatype, device, device_id: on_the_host(shape, datatype)),
    )
    path = models / "colours/1/model.onnx"
    with pytest.raises(ProviderUnavailable, match="a run failed: CUDNN_STATUS_NOT_INITIALIZED"):
        Session(path, Choice("cuda"), strict=True)
    session = Session(path, Choice("cuda"))
    assert session.provider == "cpu"
    assert session.provider_reason == "a run failed: CUDNN_STATUS_NOT_INITIALIZED"


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from service.engine.provider import Choice
from service.engine.session import Session
from service.errors import OutOfMemory

session = Session(Path(sys.argv[1]), Choice("cpu"))
frames, lengths = np.zeros((16, 8, 120, 160, 3), np.uint8), np.full(16, 8, np.int32)
session.run(frames[:1], lengths[:1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20), resource.RLIM_INFINITY))
try:
    session.run(frames, lengths)
except OutOfMemory as error:
    print(error.code, type(error.__cause__).__name__)
print(session.run(frames[:1], lengths[:1])[0].shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound on the address space that holds")
def test_a_batch_without_memory_is_told_from_other_faults_and_a_smaller_one_runs(tmp_path: Path) -> None:
    about = onnx_models.manifest(height=120, width=160)
    path = onnx_models.save(tmp_path, onnx_models.colours(about), about)
    said = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, path], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines() == ["out_of_memory Fail", "(1, 4)"], said.stderr


@pytest.mark.parametrize(
    "words",
    [
        "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 235929600",
        "bfc_arena.cc:370 Available memory of 1048576 is smaller than requested bytes of 135383040",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "Non-zero status code returned while running Cast node. Status Message: std::bad_alloc",
    ],
)
def test_words_for_no_memory(models: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    session = Session(models / "colours/1/model.onnx", CPU_CHOICE)

    def run(*arguments: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(session._session, "run", run)
    with pytest.raises(OutOfMemory):
        session.run(np.zeros((1, 8, 24, 32, 3), np.uint8), np.array([8], np.int32))
    words = "CUDA failure 700: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        session.run(np.zeros((1, 8, 24, 32, 3), np.uint8), np.array([8], np.int32))


def test_rows_that_find_no_memory_together_are_run_in_parts(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(models / "colours/1/model.onnx", CPU_CHOICE)
    inputs = {
        "frames": np.random.default_rng(0).integers(0, 256, (5, 8, 24, 32, 3), np.uint8),
        "lengths": np.array([8, 1, 2, 3, 4], np.int32),
    }
    expected, run = session.run_tensors(inputs), session._session.run
    fits, seen = 2, []

    def little_memory(names: list[str], inputs: dict[str, np.ndarray], options: object) -> Any:
        seen.append(len(inputs["frames"]))
        if seen[-1] > fits:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return run(names, inputs)

    monkeypatch.setattr(session._session, "run", little_memory)
    got = session.run_in_parts(inputs)
    assert seen == [5, 2, 3, 1, 2]
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)
    fits = 0
    with pytest.raises(OutOfMemory):
        session.run_in_parts(inputs)


def test_a_run_that_nobody_wants_is_stopped(tmp_path: Path) -> None:
    """It would take minutes."""
    about = onnx_models.manifest()
    session = Session(onnx_models.save(tmp_path, onnx_models.colours(about), about), CPU_CHOICE)
    slow = onnx_models.colours(about, delay=20_000).SerializeToString()
    session._session = onnxruntime.InferenceSession(slow, session_options(1), providers=["CPUExecutionProvider"])
    frames, lengths = np.full((1, 8, 24, 32, 3), 9, np.uint8), np.array([8], np.int32)
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(session.run, frames, lengths)
        time.sleep(0.1)
        session.stop()
        with pytest.raises(Exception, match="terminate flag"):
            run.result(PATIENCE_S)


def test_models_share_the_cores_and_do_not_multiply_them(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once, though three models are asked at the same time."""
    resources = Resources(threads=1, runs=2)
    sessions = [
        Session(models / name / "model.onnx", CPU_CHOICE, resources) for name in ("colours/1", "colours/2", "tags/1")
    ]
    at_work, most, enough, gate = 0, 0, threading.Event(), threading.Event()
    lock = threading.Lock()

    def run(names: list[str], inputs: object, options: object) -> list[np.ndarray]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
            if at_work == 2:
                enough.set()
        assert gate.wait(PATIENCE_S)
        with lock:
            at_work -= 1
        return [np.zeros(1) for _ in names]

    def run_in_place(session: Session) -> None:
        with session.place():
            session.run_tensors({})

    for session in sessions:
        monkeypatch.setattr(session._session, "run", run)
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(run_in_place, session) for session in sessions]
        assert enough.wait(PATIENCE_S)
        time.sleep(0.05)
        gate.set()
        for done in runs:
            done.result(PATIENCE_S)
    assert most == 2
    assert sessions[0]._session.get_session_options().intra_op_num_threads == 1


def test_labels_that_hold() -> None:
    chances = np.array([[0.1, 0.5, 0.5], [0.4, 0.3, 0.2]])
    assert holding(chances, "single_label").tolist() == [[False, True, False], [True, False, False]]
    assert holding(chances, "multi_label").tolist() == [[False, True, True], [False, False, False]]
    assert holding(chances[0], "single_label").tolist() == [False, True, False]


def test_probabilities() -> None:
    logits = np.array([[0.0, 1.0, 2.0, -1.0], [1000.0, 0.0, -1000.0, 0.0]])
    single = probabilities(logits, onnx_models.manifest(temperature=2.0))
    np.testing.assert_allclose(single[0], np.exp(logits[0] / 2) / np.exp(logits[0] / 2).sum())
    np.testing.assert_allclose(single.sum(-1), 1)
    multi = probabilities(logits, onnx_models.manifest(task="multi_label"))
    np.testing.assert_allclose(multi[0], 1 / (1 + np.exp(-logits[0])))
    np.testing.assert_allclose(multi[1], [1, 0.5, 0, 0.5])

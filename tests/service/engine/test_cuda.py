"""Runs on buffers that stay where they are, in the CPU's memory, which ONNX Runtime binds in the same way."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime import RunOptions

from service.engine import cuda
from service.engine.cuda import Bound, Device, batch_sizes, lock_pages
from service.engine.provider import CPU, Choice, choose
from service.engine.repository import BUNDLED
from service.engine.session import Resources, Session, session_options
from service.engine.signature import signature
from service.errors import InvalidModel, OutOfMemory, ProviderUnavailable
from tests.service import onnx_models

ABOUT = onnx_models.manifest()


def opened() -> onnxruntime.InferenceSession:
    proto = onnx_models.colours(ABOUT)
    return onnxruntime.InferenceSession(proto.SerializeToString(), session_options(1), providers=[CPU])


def clips(batch: int, steps: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 256, (batch, steps, 24, 32, 3), np.uint8)
    return {"frames": frames, "lengths": draw.integers(1, steps + 1, batch, np.int32)}


def check_equal(session: onnxruntime.InferenceSession, bound: Bound, inputs: dict[str, np.ndarray]) -> None:
    names = ["logits", "logits_over_time"]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    got = bound.run(inputs, RunOptions())
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


def test_the_sizes_in_use() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(16) == (1, 2, 4, 8, 16)


def test_bound_runs_give_what_plain_runs_give() -> None:
    session = opened()
    bound = Bound(session, signature(ABOUT), sizes=batch_sizes(6), time=8, device="cpu")
    for seed, batch in enumerate((6, 1, 5, 2, 3, 6, 4)):  # each over what another size or an earlier run left
        check_equal(session, bound, clips(batch, seed=seed))
    assert set(bound._buffers) == {1, 2, 4, 6}


def test_other_shapes_are_run_plainly() -> None:
    session = opened()
    bound = Bound(session, signature(ABOUT), sizes=(1, 2), time=8, device="cpu")
    check_equal(session, bound, clips(3))
    check_equal(session, bound, clips(2, steps=5))
    assert bound._buffers == {}
    assert bound.room((2, 5, 24, 32, 3)) is None
    assert bound.room((3, 8, 24, 32, 3)) is None


def test_what_was_gathered_in_its_room_is_not_copied_again() -> None:
    session = opened()
    bound = Bound(session, signature(ABOUT), sizes=(1, 2, 4), time=8, device="cpu")
    inputs = clips(3)
    room = bound.room((3, 8, 24, 32, 3))
    assert room is not None
    room[:] = inputs["frames"]
    names = ["logits", "logits_over_time"]
    np.testing.assert_array_equal(
        bound.run(inputs | {"frames": room}, RunOptions())["logits"], session.run(names, inputs)[0]
    )


def test_answers_outlive_the_next_run() -> None:
    session = opened()
    bound = Bound(session, signature(ABOUT), sizes=(1, 2), time=8, device="cpu")
    first = bound.run(clips(2, seed=1), RunOptions())["logits"]
    kept = first.copy()
    bound.run(clips(2, seed=2), RunOptions())
    np.testing.assert_array_equal(first, kept)


def test_each_size_is_a_graph_of_its_own_and_other_shapes_are_none() -> None:
    session = opened()
    said: list[str] = []

    class Spy:
        def io_binding(self) -> onnxruntime.IOBinding:
            return session.io_binding()

        def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
            said.append(options.get_run_config_entry("gpu_graph_id"))
            session.run_with_iobinding(binding)

        def run(self, names: Any, inputs: Any, options: onnxruntime.RunOptions) -> Any:
            said.append(options.get_run_config_entry("gpu_graph_id"))
            return session.run(names, inputs)

    bound = Bound(Spy(), signature(ABOUT), sizes=(1, 2, 4), time=8, graphs=True, device="cpu")  # type: ignore[arg-type]
    for inputs in (clips(1), clips(2), clips(3), clips(4), clips(5), clips(1)):
        bound.run(inputs, RunOptions())
    assert said == ["0", "1", "2", "2", "-1", "0"]


class Driver:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, register: int = 0) -> None:
        self.register = register
        self.locked: dict[int | None, int] = {}
        self.flags = 0

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def cuMemHostRegister_v2(self, address: ctypes.c_void_p, size: ctypes.c_size_t, flags: int) -> int:
        if not self.register:
            self.locked[address.value], self.flags = size.value, flags
        return self.register

    def cuMemHostUnregister(self, address: ctypes.c_void_p) -> int:
        del self.locked[address.value]
        return 0


def test_memory_is_page_locked_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "load_library", lambda name: driver)
    values = np.zeros((4, 10), np.uint8)
    assert lock_pages(values, 0)
    assert driver.locked == {values.ctypes.data: 40}
    view = values[:2]
    del values
    gc.collect()
    assert driver.locked, "a view still needs it"
    del view
    gc.collect()
    assert driver.locked == {}


def test_memory_that_cannot_be_locked_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "load_library", lambda name: Driver(register=2))
    assert not lock_pages(np.zeros(8), 0)

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda, "load_library", missing)
    assert not lock_pages(np.zeros(8), 0)


Opened = list[dict[str, Any]]


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Sessions that say that they are on CUDA, and refuse graphs as ONNX Runtime does where it finds control flow. The
    options of each attempt."""
    options: Opened = []
    real = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    class OnCuda(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, session: Any, providers: Any, **others: Any) -> None:
            super().__init__(model, session, providers=[CPU], **others)
            self.claims = [one if isinstance(one, str) else one[0] for one in providers]
            if self.claims != [CPU]:
                options.append(providers[0][1])
                if providers[0][1]["enable_cuda_graph"] and any("loop" in name for name in self.names()):
                    raise RuntimeError(
                        "This session cannot use the graph capture feature as requested by the user as the model has "
                        "control flow nodes which can't be supported by CUDAExecutionProvider"
                    )

        def names(self) -> list[str]:
            return list(self.get_modelmeta().custom_metadata_map)

        def get_providers(self) -> list[str]:
            return self.claims

    def on_the_host(shape: Any, datatype: Any, device: str, device_id: int) -> onnxruntime.OrtValue:
        assert (device, device_id) == ("cuda", 1)
        return real(shape, datatype)

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(on_the_host))
    return options


def saved(folder: Path, change: Callable[[onnx.ModelProto], object] = lambda proto: None) -> Path:
    proto = onnx_models.colours(ABOUT)
    change(proto)
    return onnx_models.save(folder, proto, ABOUT)


def with_a_loop(proto: onnx.ModelProto) -> None:
    helper.set_model_props(proto, ABOUT.to_metadata() | {"loop": ""})


def test_the_session_is_opened_as_asked(on_cuda: Opened, tmp_path: Path) -> None:
    resources = Resources(max_batch=3, device=Device(1, memory_bytes=1 << 30))
    session = Session(saved(tmp_path), Choice("cuda"), resources)
    assert on_cuda == [
        {
            "device_id": 1,
            "gpu_mem_limit": 1 << 30,
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": 1,
        }
    ]
    assert (session.provider, session.graphs, session.graphs_reason) == ("cuda", True, None)
    session.warm_up()
    assert session._bound is not None
    assert set(session._bound._buffers) == {1, 2, 3}
    inputs = clips(3)
    logits, *_ = session.run(**inputs)
    np.testing.assert_array_equal(logits, opened().run(["logits"], inputs)[0])


def test_a_batch_size_that_cannot_be_run_refuses_the_file_and_one_without_memory_does_not(
    on_cuda: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(saved(tmp_path), Choice("cuda"), Resources(max_batch=8, device=Device(1)))
    assert session._bound is not None
    seen, words = [], "CUDA failure 2: out of memory"

    def run(inputs: dict[str, np.ndarray], options: RunOptions) -> dict[str, np.ndarray]:
        seen.append(len(inputs["frames"]))
        if seen[-1] == 4:
            raise RuntimeError(words)
        return {}

    monkeypatch.setattr(session._bound, "run", run)
    session.warm_up()
    assert seen == [1, 2, 4]
    words = "CUDA failure 1: invalid argument"
    with pytest.raises(InvalidModel, match="a run on a batch of 4 failed: CUDA failure 1"):
        session.warm_up()


def test_a_model_that_cannot_be_recorded_runs_without_and_says_why(on_cuda: Opened, tmp_path: Path) -> None:
    session = Session(saved(tmp_path, with_a_loop), Choice("cuda"), Resources(device=Device(1)), strict=True)
    assert [options["enable_cuda_graph"] for options in on_cuda] == [1, 0]
    assert (session.provider, session.graphs) == ("cuda", False)
    assert "control flow nodes" in str(session.graphs_reason)


def test_graphs_that_are_asked_for_or_not_wanted(on_cuda: Opened, tmp_path: Path) -> None:
    path = saved(tmp_path, with_a_loop)
    with pytest.raises(InvalidModel, match=r"expected a model that CUDA graphs can record: .*control flow"):
        Session(path, Choice("cuda"), Resources(device=Device(1, graphs="on")))
    on_cuda.clear()
    session = Session(path, Choice("cuda"), Resources(device=Device(1, graphs="off")))
    assert [options["enable_cuda_graph"] for options in on_cuda] == [0]
    assert (session.graphs, session.graphs_reason) == (False, None)


def test_a_batch_is_gathered_where_the_gpu_takes_it_from(on_cuda: Opened, tmp_path: Path) -> None:
    session = Session(saved(tmp_path), Choice("cuda"), Resources(max_batch=4, device=Device(1)))
    assert session._bound is not None
    assert np.shares_memory(session.room((3, 8, 24, 32, 3)), session._bound._host["frames"])
    assert session.room((3, 9, 24, 32, 3)).shape == (3, 9, 24, 32, 3)


def on_a_gpu() -> Choice:
    try:
        return choose("cuda")
    except ProviderUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("place", ["bundled", "made"])
def test_on_a_real_gpu_every_batch_size_gives_what_the_cpu_gives(
    graphs: cuda.Graphs, place: str, tmp_path: Path
) -> None:
    path = BUNDLED / "moving_digits" / "1" / "model.onnx" if place == "bundled" else saved(tmp_path)
    session = Session(path, on_a_gpu(), Resources(max_batch=8, device=Device(graphs=graphs)), strict=True)
    session.warm_up()
    plain = Session(path, Choice("cpu"))
    steps, height, width, _ = session.clip_manifest().sampling.clip_shape
    if graphs == "off":
        assert not session.graphs
    for batch in (8, 1, 3, 8, 5):
        frames = np.random.default_rng(batch).integers(0, 256, (batch, steps, height, width, 3), np.uint8)
        lengths = np.full(batch, steps, np.int32)
        state = {one.input: np.zeros((batch, *one.shape), one.dtype) for one in session.states}
        ran, expects = session.run(frames, lengths, state), plain.run(frames, lengths, state)
        for got, expected in zip(ran[:2], expects[:2], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.gpu
def test_a_real_gpu_without_the_memory_for_a_batch_says_so_and_runs_a_smaller_one(tmp_path: Path) -> None:
    about = onnx_models.manifest(num_frames=16, height=120, width=160)
    path = onnx_models.save(tmp_path, onnx_models.colours(about), about)
    resources = Resources(max_batch=32, device=Device(memory_bytes=32 << 20, graphs="off"))
    session = Session(path, on_a_gpu(), resources, strict=True)
    frames, lengths = np.zeros((32, 16, 120, 160, 3), np.uint8), np.full(32, 16, np.int32)
    with pytest.raises(OutOfMemory):
        session.run(frames, lengths)
    assert session.run(frames[:1], lengths[:1])[0].shape == (1, 4)

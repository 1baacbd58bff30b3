"""CUDA or not, and why: with what is missing faked."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from service.__main__ import main
from service.engine import provider
from service.engine.provider import CPU, CUDA, Choice, choose
from service.errors import ProviderUnavailable


class Driver:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, *, init: int = 0, devices: int = 1) -> None:
        self.init, self.devices = init, devices

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine where all is well, to be broken: .missing names libraries, .driver is the driver or None."""
    fake = SimpleNamespace(missing=[], driver=Driver(), providers=[CUDA, CPU])

    def load_library(name: str) -> object:
        if name in fake.missing or (name == "libcuda.so.1" and fake.driver is None):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return fake.driver

    def preload_dlls() -> None:
        for name in fake.missing:
            if "cudnn" not in name:
                print(f"Failed to load {name}: {name}: cannot open shared object file")

    monkeypatch.setattr(provider, "load_library", load_library)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: fake.providers)
    return fake


def test_cuda_where_nothing_is_missing(machine: SimpleNamespace) -> None:
    assert choose("auto") == choose("cuda") == Choice("cuda")


def test_the_cpu_when_asked_for_needs_no_reason(machine: SimpleNamespace) -> None:
    assert choose("cpu") == Choice("cpu")


@pytest.mark.parametrize("library", ["libcublasLt.so.13", "libcudnn.so.9"])
def test_a_missing_library_is_named_with_the_cure(machine: SimpleNamespace, library: str) -> None:
    machine.missing = [library]
    choice = choose("auto")
    assert choice.name == "cpu"
    assert choice.reason is not None
    with pytest.raises(ProviderUnavailable) as caught:
        choose("cuda")
    for said in (choice.reason, str(caught.value)):
        assert library in said
        assert "pip install -c deploy/constraints.txt '.[gpu]' (in a checkout)" in said
        assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in said
        assert "ttvideo[" not in said, "an index may hold somebody else's package of that name"


def test_no_driver_no_device_and_no_build(machine: SimpleNamespace) -> None:
    machine.driver = None
    assert "libcuda.so.1" in str(choose("auto").reason)
    machine.driver = Driver(init=100)
    assert "cuInit gives 100" in str(choose("auto").reason)
    machine.driver = Driver(devices=0)
    assert choose("auto").reason == "expected CUDA device 0, the driver has 0"
    machine.driver = Driver(devices=2)
    assert choose("auto", device_id=2).reason == "expected CUDA device 2, the driver has 2"
    machine.providers = [CPU]
    assert "has no CUDA provider" in str(choose("auto").reason)


def test_requiring_cuda_in_vain_is_told_before_the_service_is_loaded() -> None:
    """It takes less than 2 s on a machine with nothing else to do, most of it for ONNX Runtime and FFmpeg."""
    code = (
        "import sys; from service.__main__ import main; from service.engine import provider;"
        "provider.cuda_fault = lambda device_id: 'libcudnn.so.9 cannot be loaded';"
        "assert main(['--require-cuda', '--port', '0']) == 2;"
        "assert not {'fastapi', 'uvicorn', 'service.app', 'service.engine.repository'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "ttvideo: CUDA was asked for and cannot be used: libcudnn.so.9 cannot be loaded\n"


def test_requiring_cuda_in_vain_ends_the_start_in_one_line(
    machine: SimpleNamespace, capsys: pytest.CaptureFixture[str], models: object
) -> None:
    machine.missing = ["libcublasLt.so.13"]
    assert main(["--require-cuda", "--port", "0", "--models", str(models), "--default-model", "tags"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.startswith("ttvideo: ")] == [
        "ttvideo: CUDA was asked for and cannot be used: libcublasLt.so.13 cannot be loaded; " + provider.INSTALL
    ]

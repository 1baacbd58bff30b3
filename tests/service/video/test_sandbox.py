"""What a process can still do in the sandbox: tried for real, each layer alone and all of them together."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import StartError
from service.settings import Settings
from service.video import child, sandbox
from service.video.child import Policy
from service.video.sandbox import Layer
from service.video.workers import DecodePool
from tests.service.conftest import Service, running

ATTEMPTS = r"""
import ctypes, json, mmap, os, socket, sys, threading
import sandbox

layers, folder, port = json.loads(sys.argv[1])
canary = os.path.join(folder, "canary")
opened = os.open(canary, os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")

def fork():
    if not os.fork():
        os._exit(0)

def thread():
    seen = []
    one = threading.Thread(target=lambda: seen.append(os.pread(opened, 6, 0)))
    one.start()
    one.join()
    assert seen == [b"secret"]

attempts = {
    "read a file": lambda: open(canary).close(),
    "write a file": lambda: open(os.path.join(folder, "new"), "w").close(),
    "truncate a file": lambda: os.truncate(canary, 0),
    "remove a file": lambda: os.unlink(os.path.join(folder, "other")),
    "list a folder": lambda: os.listdir(folder),
    "make a folder": lambda: os.mkdir(os.path.join(folder, "made")),
    "change a file's rights": lambda: os.chmod(canary, 0o777),
    "connect by TCP": lambda: socket.socket().connect(("127.0.0.1", port)),
    "send by UDP": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
    "make a socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "fork": fork,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "read the parent's memory": lambda: call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0),
    "make code of data": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "enter a namespace": lambda: call("unshare", 0x10000000),
    "set up io_uring": lambda: call("syscall", 425, 1, 0),
    "choose its processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "read what is open": lambda: os.pread(opened, 6, 0),
    "run a thread": thread,
    "take memory": lambda: bytearray(1 << 28),
    "take much memory": lambda: bytearray(1 << 30),
    "open many files": lambda: [os.dup(opened) for _ in range(64)],
    "run a program": lambda: os.execv("/bin/true", ["true"]),
}
steps = {"landlock": sandbox._landlock, "seccomp": sandbox._seccomp, "no_new_privileges": sandbox._no_new_privileges}
limits = sandbox.Limits(address_space_bytes=1 << 30)
if layers == "all":
    said = sandbox.enter(limits)
else:
    said = [[name, True, steps[name]()] for name in layers]
results = {}
for name, attempt in attempts.items():
    sys.stdout.flush()
    if name == "run a program":
        print(json.dumps([said, results]), flush=True)
    try:
        attempt()
        results[name] = "done"
    except OSError as error:
        results[name] = os.strerror(error.errno)
    except Exception as error:
        results[name] = type(error).__name__
print(json.dumps([said, results]))
"""

DENIED = {"Operation not permitted", "Permission denied", "Invalid cross-device link"}

FILES = {"read a file", "write a file", "truncate a file", "remove a file", "list a folder", "make a folder"}
LANDLOCK = FILES | {"connect by TCP", "signal the parent", "run a program"}
SECCOMP = LANDLOCK | {
    "change a file's rights",
    "send by UDP",
    "make a socket",
    "fork",
    "read the parent's memory",
    "make code of data",
    "enter a namespace",
    "set up io_uring",
    "choose its processors",
}
HARMLESS = {"read what is open", "run a thread", "take memory"}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may import the module `sandbox`, and nothing else of the project: it starts at once."""
    environment = os.environ | {"PYTHONPATH": str(Path(sandbox.__file__).parent)}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)


def attempt(layers: list[str] | str, folder: Path, port: int) -> tuple[list[Layer], dict[str, str]]:
    """Enter `layers` in a fresh process and try everything: what each layer says, and how each attempt ended."""
    (folder / "canary").write_text("secret")
    (folder / "other").write_text("secret")
    done = python(ATTEMPTS, json.dumps([layers, str(folder), port]))
    assert done.returncode == 0, done.stderr
    said, results = json.loads(done.stdout.splitlines()[-1])
    return [Layer(*layer) for layer in said], {"run a program": "done"} | results


def denied(results: dict[str, str]) -> set[str]:
    return {name for name, how in results.items() if how in DENIED}


def test_all_layers_together(tmp_path: Path, listener: socket.socket) -> None:
    layers, results = attempt("all", tmp_path, listener.getsockname()[1])
    assert [layer.name for layer in layers] == ["limits", "no_new_privileges", "landlock", "seccomp"]
    if missing := [layer for layer in layers if not layer.enforced]:
        pytest.skip(f"this kernel cannot: {missing}")
    assert denied(results) == SECCOMP
    assert {name for name, how in results.items() if how == "done"} == HARMLESS
    assert results["take much memory"] == "MemoryError"
    assert results["open many files"] == os.strerror(24)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["canary", "other"]
    assert (tmp_path / "canary").read_text() == "secret"
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(("layer", "expected"), [("landlock", LANDLOCK), ("seccomp", SECCOMP)])
def test_one_layer_alone(layer: str, expected: set[str], tmp_path: Path, listener: socket.socket) -> None:
    try:
        (_, told), results = attempt(["no_new_privileges", layer], tmp_path, listener.getsockname()[1])
    except AssertionError as error:
        if "_Unavailable" in str(error):
            pytest.skip("this kernel cannot")
        raise
    if layer == "landlock":
        expected = expected - ({"connect by TCP"} if "TCP" not in told.detail else set())
        expected = expected - ({"signal the parent"} if "signals" not in told.detail else set())
    assert denied(results) == expected


def test_without_a_layer_everything_is_possible(tmp_path: Path, listener: socket.socket) -> None:
    """So that the tests above see the sandbox and not the machine they run on."""
    _, results = attempt([], tmp_path, listener.getsockname()[1])
    assert not denied(results) & (SECCOMP - {"read the parent's memory", "set up io_uring", "enter a namespace"})


@pytest.mark.parametrize("code", ["os.abort()", "os.kill(os.getpid(), 9)"])
def test_a_crash_is_told_from_a_refusal(code: str) -> None:
    """abort() is how C libraries give up: it must end the process in the sandbox too. Other signals go to nobody."""
    script = f"import os, sandbox; sandbox._no_new_privileges(); sandbox._seccomp(); {code}"
    done = python(script)
    if "_Unavailable" in done.stderr:
        pytest.skip("this kernel cannot")
    if "abort" in code:
        assert done.returncode == -signal.SIGABRT
    else:
        assert "PermissionError" in done.stderr


@pytest.mark.parametrize(
    ("patch", "layer", "reason"),
    [
        ("sandbox.platform.machine = lambda: 'riscv64'", "seccomp", "no filter for riscv64"),
        ("sandbox._LANDLOCK_CREATE_RULESET = 9999", "landlock", "this kernel has no Landlock"),
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "landlock",
            "thread",
        ),
        ("sandbox.sys.platform = 'darwin'", "no_new_privileges", "darwin has none"),
    ],
)
def test_what_a_kernel_cannot_is_said_and_the_rest_is_done(patch: str, layer: str, reason: str) -> None:
    done = python(f"import json, sandbox; {patch}; print(json.dumps(sandbox.enter(sandbox.Limits())))")
    layers = {name: (enforced, detail) for name, enforced, detail in json.loads(done.stdout)}
    assert not layers[layer][0]
    assert reason in layers[layer][1]
    assert layers["limits"][0]


# ---- the filter, read as the kernel reads it


def verdict(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Run a classic BPF program (linux/filter.h) on a struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, if_so, if_not, value = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            at += if_so if accumulator == value else if_not
        else:
            assert operation == 0x06
            return value


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86 = {"read": 0, "openat": 257, "open": 2, "socket": 41, "execve": 59, "fork": 57, "ptrace": 101, "kill": 62}
X86 |= {"mmap": 9, "clone": 56, "clone3": 435, "prctl": 157, "tgkill": 234, "fcntl": 72, "io_uring_setup": 425}
ARM = {"read": 63, "openat": 56, "openat2": 437, "socket": 198, "execve": 221, "ptrace": 117, "kill": 129}
ARM |= {"mmap": 222, "clone": 220, "clone3": 435, "prctl": 167, "tgkill": 131, "fcntl": 25, "io_uring_setup": 425}


@pytest.mark.parametrize(("machine", "numbers"), [("x86_64", X86), ("aarch64", ARM)])
def test_the_filter_of_each_architecture(machine: str, numbers: dict[str, int]) -> None:
    audit, column, _ = sandbox._ARCHITECTURES[machine]
    program = sandbox._program(audit, column)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096  # the kernel's limit

    def asked(name: str, *arguments: int) -> int:
        return verdict(program, audit, numbers[name], *arguments)

    assert asked("read") == ALLOW
    for name in numbers.keys() - {"read", "mmap", "clone", "clone3", "prctl", "tgkill", "fcntl"}:
        assert asked(name) == EPERM, name
    assert asked("mmap", 0, 4096, 3) == ALLOW
    assert asked("mmap", 0, 4096, 7) == EPERM
    assert asked("clone", 0x3D0F00) == ALLOW  # pthread_create
    assert asked("clone", 17) == EPERM  # fork: SIGCHLD and nothing else
    assert asked("clone", 0x3D0F00 | 0x10000000) == EPERM  # into a user namespace
    assert asked("clone3") == ENOSYS
    assert asked("prctl", 15) == ALLOW
    assert asked("prctl", 22) == EPERM  # PR_SET_SECCOMP
    assert asked("tgkill", os.getpid()) == ALLOW
    assert asked("tgkill", os.getppid()) == EPERM
    assert asked("fcntl", 5, 1030) == ALLOW
    assert asked("fcntl", 5, 8) == EPERM  # F_SETOWN, which aims signals
    assert verdict(program, audit ^ 1, numbers["read"]) == KILL
    assert verdict(program, audit, 0x40000000) == EPERM  # x32


# ---- in the decoder processes


def test_a_required_sandbox_that_cannot_be_had_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [Layer("limits", True, "all"), Layer("landlock", False, "this kernel has no Landlock")]
    monkeypatch.setattr(child, "enter", lambda limits, with_driver: layers)
    assert child.give_up(Policy(sandbox="auto")) == layers
    assert child.give_up(Policy(sandbox="off")) == []
    with pytest.raises(StartError, match=r"lacks landlock \(this kernel has no Landlock\)"):
        child.give_up(Policy(sandbox="required"))


def test_a_limit_that_is_tighter_already_stays() -> None:
    script = (
        "import resource, sandbox; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20));"
        "print(sandbox._limit(sandbox.Limits())); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert python(script).stdout.splitlines()[1] == "(20, 20)"


def test_beside_a_driver_what_can_hold_does() -> None:
    script = (
        "import json, resource, sandbox; said = sandbox.enter(sandbox.Limits(cpu_s=77), with_driver=True);"
        "kinds = [resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE];"
        "print(json.dumps([said, [resource.getrlimit(kind) for kind in kinds], len(open('/proc/self/status').read())]))"
    )
    layers, limits, read = json.loads(python(script).stdout)
    assert {name: held for name, held, _ in layers} == {
        "limits": True, "no_new_privileges": True, "landlock": False, "seccomp": False
    }  # fmt: skip
    assert layers[0][2].startswith("any amount of address space, 77 s")
    assert layers[3][2] == sandbox.DRIVER_NEEDS
    assert limits[1:] == [[77, 77], [0, 0]]
    assert limits[0][0] == -1 or limits[0][0] > 4 << 30
    assert read > 0


def test_a_decoder_holds_nothing_but_its_channel_and_its_memory() -> None:
    async def with_decoder() -> list[str]:
        pool = DecodePool(1, 1000)
        await pool.start()
        try:
            return open_files(pool.pids[0])
        finally:
            await pool.close()

    def open_files(pid: int) -> list[str]:
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if int(entry.name) > 2]

    kinds = sorted({name.split(":")[0].split("psm")[0] for name in asyncio.run(with_decoder())})
    assert kinds == ["/dev/null", "/dev/shm/", "socket"]


def test_nothing_is_left_to_be_imported() -> None:
    """A decoder cannot open files, so what PyAV imports only when it is needed must be there from the start."""
    script = (
        "import sys, pkgutil, av, service.video.child;"
        "print([m.name for m in pkgutil.walk_packages(av.__path__, 'av.') if m.name not in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= {"av.__main__", "av.datasets", "av.subtitles.subtitle"}


def test_the_service_says_what_is_enforced(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.video.workers")
    settings = Settings(models=models, default_model="colours/1", provider="cpu", decode_workers=1)
    with running(settings) as service:
        said = enforced(service)
        assert said["limits"] == (
            1.0,
            "4096 MiB of address space, 1200 s of processor time, 32 open files, no core dump",
        )
        assert said.keys() == {"limits", "no_new_privileges", "landlock", "seccomp"}
        for name, (value, detail) in said.items():
            assert f"{name} {'' if value else 'NOT enforced: '}({detail})" in caplog.text
    with running(settings.model_copy(update={"sandbox": "off"})) as service:
        assert enforced(service) == {}
    assert "NOT in a sandbox, as the settings say" in caplog.text


def enforced(service: Service) -> dict[str, tuple[float, str]]:
    samples = [
        sample
        for metric in service.classifier.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "ttvideo_decoder_sandbox"
    ]
    return {sample.labels["layer"]: (sample.value, sample.labels["detail"]) for sample in samples}

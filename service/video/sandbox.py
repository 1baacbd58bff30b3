"""What a decoder process gives up before it reads an upload: files, network, other processes, endless memory and time.

Four layers, each as far as the kernel lets an unprivileged process go: resource limits, no_new_privs, Landlock (no
file, no TCP port, no signal to others) and a seccomp filter that allows the few system calls of decoding and answers
every other one with EPERM. The upload arrives as a descriptor that is open already, so there is no file to except.

Landlock is three system calls and the filter some 150 instructions, so both are written here with ctypes: libseccomp
is a library of the system that slim images lack, and its bindings on PyPI, like those of Landlock, are old or unused.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Mode = Literal["auto", "required", "off"]
"""auto: what this kernel can, said at the start. required: all of it, or no start."""


@dataclass(frozen=True)
class Limits:
    """Of one process, for its whole life."""

    address_space_bytes: int = 4 << 30
    """Enough for the reference pictures of 36 megapixels that codecs allow; a decoder that idles has 260 MB."""
    cpu_s: int = 1200
    open_files: int = 32


DRIVER_FILES = 1024
"""A GPU's driver keeps some dozens open."""


class Layer(NamedTuple):
    name: str
    enforced: bool
    detail: str
    """What it holds back, or why it does not."""


class _Unavailable(Exception):
    """The kernel cannot, or may not, do what was asked of it."""


DRIVER_NEEDS = "a GPU's driver opens devices and libraries, and starts threads, while it decodes"


def enter(limits: Limits, *, with_driver: bool = False) -> list[Layer]:
    """Give up, in this process and all its threads to come, what decoding does not need. There is no way back.

    Args:
        with_driver: whether a GPU's driver works in the process. It can have neither a bound on its address space,
            of which it reserves more than there is memory, nor Landlock nor the filter.
    """
    steps: dict[str, Callable[[], str]] = {
        "limits": lambda: _limit(limits, with_driver),
        "no_new_privileges": _no_new_privileges,
        "landlock": _landlock,
        "seccomp": _seccomp,
    }
    layers = []
    for name, give_up in steps.items():
        try:
            if with_driver and name in ("landlock", "seccomp"):
                raise _Unavailable(DRIVER_NEEDS)
            layers.append(Layer(name, True, give_up()))
        except (_Unavailable, OSError, ValueError) as error:
            layers.append(Layer(name, False, str(error)))
    return layers


def _limit(limits: Limits, with_driver: bool = False) -> str:
    open_files = DRIVER_FILES if with_driver else limits.open_files
    wanted = {
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_NOFILE": open_files,
        "RLIMIT_CORE": 0,
    }
    space = "any amount"
    if not with_driver:
        wanted["RLIMIT_AS"] = limits.address_space_bytes
        space = f"{limits.address_space_bytes >> 20} MiB"
    for name, value in wanted.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    return f"{space} of address space, {limits.cpu_s} s of processor time, {open_files} open files, no core dump"


# --- system calls -----------------------------------------------------------------------------------------------

_PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 15, 38


def _call(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise _Unavailable(f"{sys.platform} has none")
    return ctypes.CDLL(None, use_errno=True)


def _no_new_privileges() -> str:
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "no program that is run gains any"


# --- Landlock (linux/landlock.h): the numbers are the same on every architecture ---------------------------------

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_GET_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""ABI -> how many rights to files and folders there are, bits from the lowest."""
_BIND_AND_CONNECT_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11


def _landlock() -> str:
    """Handle every right that this kernel knows, and grant none."""
    try:
        abi = _call(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_GET_VERSION))
    except OSError as error:
        raise _Unavailable(f"this kernel has no Landlock, or it is turned off ({error.strerror})") from error
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise _Unavailable(f"{threads} threads run already, and Landlock holds for one")
    denied, words = ["files"], [(1 << _FILE_RIGHTS[min(abi, max(_FILE_RIGHTS))]) - 1]
    if abi >= 4:
        denied.append("TCP")
        words.append(_BIND_AND_CONNECT_TCP)
    if abi >= 6:
        denied.append("signals to others")
        words.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = _call(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        _call(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return f"no {', '.join(denied)} (ABI {abi})"


# --- seccomp (linux/seccomp.h, linux/filter.h, linux/audit.h) ----------------------------------------------------

_ARCHITECTURES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}
"""Machine -> AUDIT_ARCH, its column below, and the number of seccomp itself."""

_ABSENT = -1
_ALLOWED = {
    # the upload, the channel to the parent
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "dup": (32, 23), "poll": (7, _ABSENT), "ppoll": (271, 73),
    "sendto": (44, 206), "recvfrom": (45, 207), "recvmsg": (47, 212), "shutdown": (48, 210),
    # memory
    "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    # threads
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "gettid": (186, 178), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "exit": (60, 93), "exit_group": (231, 94),
    # time, signals to itself, chance
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "setitimer": (38, 103), "restart_syscall": (219, 128), "getrusage": (98, 165),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "getpid": (39, 172), "getrandom": (318, 278),
}  # fmt: skip
"""System calls of decoding whatever their arguments, by number on x86_64 and on aarch64."""

_PROT_EXEC, _AT_EMPTY_PATH, _F_DUPFD_CLOEXEC, _F_GETFD, _F_GETFL = 4, 0x1000, 1030, 1, 3
_CLONE_THREAD, _CLONE_NAMESPACES = 0x10000, 0x7E020000

_ALLOWED_IF = [
    ("mmap", (9, 222), 2, _PROT_EXEC, 0),
    ("mprotect", (10, 226), 2, _PROT_EXEC, 0),
    ("clone", (56, 220), 0, _CLONE_THREAD | _CLONE_NAMESPACES, _CLONE_THREAD),
    ("newfstatat", (262, 79), 3, 0xFFFFFFFF, _AT_EMPTY_PATH),  # how some C libraries say fstat
    ("fcntl", (72, 25), 1, 0xFFFFFFFF, _F_DUPFD_CLOEXEC),
    ("fcntl", (72, 25), 1, 0xFFFFFFFF, _F_GETFD),
    ("fcntl", (72, 25), 1, 0xFFFFFFFF, _F_GETFL),
    ("prctl", (157, 167), 0, 0xFFFFFFFF, _PR_SET_NAME),
]
"""Name, numbers; where the argument of that index, under the mask, has the value. `tgkill` joins at run time."""

_CLONE3 = 435
"""Its flags lie in memory, out of a filter's sight; told that there is none, C libraries use clone."""

_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data."""


def _seccomp() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise _Unavailable(f"there is no filter for {machine}, only for {' and '.join(_ARCHITECTURES)}")
    audit, column, number = _ARCHITECTURES[machine]
    code = _program(audit, column)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    try:
        stuck = _call(number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_ALL_THREADS), filter_)
    except OSError as error:
        raise _Unavailable(f"this kernel takes no filter ({error.strerror})") from error
    if stuck:
        raise _Unavailable(f"thread {stuck} has a filter of its own")
    return f"{len(_ALLOWED) + len({name for name, *_ in _ALLOWED_IF}) + 1} system calls allowed"


def _program(audit: int, column: int) -> bytes:
    """Classic BPF: one answer for each system call."""
    load, and_, equal, answer = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET|K
    code: list[tuple[int, int, int, int]] = []

    def emit(operation: int, value: int, *, skip_if: int = 0, skip_unless: int = 0) -> None:
        code.append((operation, skip_if, skip_unless, value))

    emit(load, _ARCHITECTURE)
    emit(equal, audit, skip_if=1)
    emit(answer, _KILL_PROCESS)
    emit(load, _NUMBER)
    for numbers in _ALLOWED.values():
        if numbers[column] != _ABSENT:
            emit(equal, numbers[column], skip_unless=1)
            emit(answer, _ALLOW)
    itself = ("tgkill", (234, 131), 0, 0xFFFFFFFF, os.getpid())
    for _, numbers, index, mask, value in (*_ALLOWED_IF, itself):
        emit(equal, numbers[column], skip_unless=5)
        emit(load, _ARGUMENTS + 8 * index)  # the low half: both architectures are little-endian
        emit(and_, mask)
        emit(equal, value, skip_unless=1)
        emit(answer, _ALLOW)
        emit(load, _NUMBER)
    emit(equal, _CLONE3, skip_unless=1)
    emit(answer, _ERRNO | _ENOSYS)
    emit(answer, _ERRNO | _EPERM)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)

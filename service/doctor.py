"""`python -m service doctor`: what is usable here, what is not, and why.

Every check is tried for real, in a process of its own that is killed when it takes too long: a driver or a network
disk that hangs is a finding.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from service import __version__
from service.checks import CHECKS, Status
from service.errors import StartError
from service.settings import Settings

CHECK_LIMIT_S = 20.0
"""What one check may take. A model that is slower is not served either, before long."""


@dataclass(frozen=True)
class Finding:
    check: str
    status: Status
    detail: str


def doctor(settings: Settings, *, as_json: bool = False, limit_s: float = CHECK_LIMIT_S) -> int:
    """Look, print, and return the exit code: 0 where the service can serve as it is configured, else 1."""
    findings: list[Finding] = []
    for finding in examine(settings, limit_s):
        findings.append(finding)
        if not as_json:
            mark = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}[finding.status]
            print(f"{mark} {finding.check}: {finding.detail}", flush=True)
    usable = all(finding.status != "fault" for finding in findings)
    if as_json:
        answer = {
            "version": __version__,
            "usable": usable,
            "findings": [asdict(finding) for finding in findings],
            "settings": settings.model_dump(mode="json"),
        }
        print(json.dumps(answer, indent=2))
    else:
        print("can serve as configured" if usable else "CANNOT serve as configured")
    return 0 if usable else 1


def examine(settings: Settings, limit_s: float = CHECK_LIMIT_S) -> Iterator[Finding]:
    """Every finding as it becomes known."""
    waiting = list(CHECKS)
    while waiting:
        with _child(waiting, settings) as answers:
            while waiting:
                line = _next_line(answers, limit_s)
                if line is None:
                    name = waiting.pop(0)
                    yield Finding(name, "fault", f"no result within {limit_s:g} s: it hangs, or is far too slow")
                    break
                if not line:
                    yield Finding(waiting.pop(0), "fault", "the process that looked at it died")
                    break
                said = json.loads(line)
                if said is None:
                    waiting.pop(0)
                else:
                    yield Finding(waiting[0], *said)


@contextlib.contextmanager
def _child(names: list[str], settings: Settings) -> Iterator[int]:
    """A process that runs these checks in turn: the end of a pipe at which its findings come, a JSON line each, and
    null after each check. It and all its children are gone at the end of the block."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            os.close(ours)
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
            for output in (1, 2):  # libraries say there what the findings say better
                os.dup2(sys.stdout.fileno(), output)
            for name in names:
                _run(name, settings, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        yield ours
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        for _ in range(100):  # one that hangs in the kernel is not waited for
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(0.01)


def _run(name: str, settings: Settings, pipe: int) -> None:
    def say(finding: tuple[Status, str] | None) -> None:
        os.write(pipe, json.dumps(finding).encode() + b"\n")

    warnings = logging.Handler(logging.WARNING)
    warnings.emit = lambda record: say(("note", record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger().handlers = [warnings]
    try:
        for finding in CHECKS[name](settings):
            say(finding)
    except StartError as error:
        say(("fault", str(error)))
    except Exception as error:
        say(("fault", f"{type(error).__name__}: {error}"))
    say(None)


def _next_line(pipe: int, limit_s: float) -> bytes | None:
    """A line; nothing at the end; None where none came in time."""
    deadline = time.monotonic() + limit_s
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(pipe, 1)
        if not piece:
            return b""
        line += piece
    return line

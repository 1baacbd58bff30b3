"""A real `python -m service` on a free port of this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GREETING_S = 60.0
"""Long enough for a start on a busy machine."""
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@contextmanager
def served(*arguments: str | Path, stderr: int = subprocess.PIPE) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its URL, and everything it said on getting ready; killed at the end of the block if it still runs.

    stderr: somewhere else than a pipe where the service will log more than a pipe holds.
    """
    command = [sys.executable, "-m", "service", "--port", "0", "--provider", "cpu", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(GREETING_S, process.kill)  # ends the wait for a greeting that does not come
    watchdog.start()
    try:
        greeting = ""
        while "try: " not in greeting:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            greeting += line
        watchdog.cancel()
        match = ADDRESS.search(greeting)
        assert match is not None
        yield process, match[0], greeting
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate()

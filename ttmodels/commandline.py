"""What the commands of ttmodels and exporters share: bad input is one line and an exit code, never a traceback.

There is no torch in this module: it tells where torch is missing.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from pydantic import ValidationError

BAD_INPUT = 2
INTERRUPTED = 130

Main = Callable[[Sequence[str] | None], int]


def require(*modules: str) -> None:
    """End the process, with what to install, where a module of the extra `train` is missing."""
    if missing := [name for name in modules if find_spec(name) is None]:
        print(
            f"error: needs {', '.join(missing)}: in a clone of ttvideo, "
            "pip install -c deploy/constraints.txt '.[train]'",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)


def command(main: Main) -> Callable[..., int]:
    """A command's `main` that answers bad input (ValueError, OSError) and Ctrl-C with one line and an exit code."""

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted{''.join(f'; {hint}' for hint in interrupt.args)}", file=sys.stderr)
            return INTERRUPTED
        except (ValueError, OSError) as error:
            print(f"error: {plain(error)}", file=sys.stderr)
            return BAD_INPUT

    return guarded


def plain(error: Exception) -> str:
    """An error in one line: pydantic's faults without its links, the system's without its numbers."""
    if isinstance(error, ValidationError):
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or error.title}: {fault['msg']}, got {fault['input']!r:.100}"
            for fault in error.errors()
        ]
        return "; ".join(faults)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)

"""What the commands of ttmodels and exporters share: bad input is one line and an exit code, never a traceback.

There is nothing large in this module: it tells where torch is missing, and is there before a command's long imports.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

Main = Callable[[Sequence[str] | None], int]


def require(*modules: str) -> None:
    """What a command calls before its imports: ends the process, with what to install, where a module of the extra
    `train` is missing; and Ctrl-C ends it with one line until the command's `main` takes over.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_imports)
    if missing := [name for name in modules if find_spec(name) is None]:
        print(
            f"error: needs {', '.join(missing)}: in a clone of ttvideo, "
            "pip install -c deploy/constraints.txt '.[train]'",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)


def _end_imports(*_: object) -> None:
    """An exception might be swallowed by what is being imported; nothing is half done yet."""
    os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)


def command(main: Main) -> Callable[..., int]:
    """A command's `main` that answers bad input (ValueError, OSError) and Ctrl-C with one line and an exit code, and
    ends without a word where nobody reads on what it prints.
    """

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            if signal.getsignal(signal.SIGINT) is _end_imports:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            code = main(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python flushes at its end
            return BROKEN_PIPE
        except KeyboardInterrupt as interrupt:
            _say(f"\ninterrupted{''.join(f'; {hint}' for hint in interrupt.args)}")
            return INTERRUPTED
        except (ValueError, OSError) as error:
            _say(f"error: {plain(error)}")
            return BAD_INPUT

    return guarded


def _say(line: str) -> None:
    """On standard error. Of processes that torchrun started, the first one speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def plain(error: Exception) -> str:
    """An error in one line: pydantic's faults without its links, the system's without its numbers."""
    from pydantic import ValidationError  # not before `require`

    if isinstance(error, ValidationError):
        faults = [
            str(fault["ctx"]["error"])
            if fault["type"] == "value_error"
            else f"{'.'.join(map(str, fault['loc'])) or error.title}: {fault['msg']}, got {fault['input']!r:.100}"
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


def positive_number(text: str) -> float:
    """An option's number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return value


def check_output(option: str, out: Path | None, *inputs: Path | None) -> None:
    """Pass a file to write that is none of the files to read, and none inside their folders' sub-folders.

    Raises:
        ValueError: it is one of them, under whatever name; or a folder.
    """
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"{option}: expected a file to write, found a folder at {out}")
    for source in inputs:
        if source is None or not source.exists() or not out.exists():
            continue
        inside = source.is_dir() and source.resolve() in out.resolve().parents[1:]
        if inside or out.samefile(source):
            where = f"a file of {source}" if inside else f"which is {source}"
            raise ValueError(f"{option}: expected another file than what is read, got {out}, {where}")

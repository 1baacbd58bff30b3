"""API keys: who may ask, by name. Kept as SHA-256, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from service.errors import StartError

log = logging.getLogger(__name__)

MIN_KEY_LENGTH = 16
REREAD_S = 1.0
"""How often the file is looked at, at most."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")

Known = tuple[tuple[str, bytes], ...]


class Keys:
    """The keys of a file and of the environment.

    The file is read again within `REREAD_S` of a change; one that cannot be read changes nothing, and the log says why.

    Args:
        listed: NAME:KEY, separated by white space or commas.
        file: NAME:KEY, one a line; empty lines and lines that begin with # count nothing.

    In the place of KEY there may be `sha256:` and the hexadecimal SHA-256 of it. One name may have several keys, so
    that an old one goes on for a while.

    Raises:
        StartError: says which line is wrong, and never what it holds.
    """

    def __init__(self, listed: str = "", file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._listed = _parse(re.split(r"[\s,]+", listed), "TTVIDEO_API_KEYS, entry")
        self._file, self._clock = file, clock
        self._from_file: Known = ()
        self._state: object = None
        self._looked = clock()
        if file is not None:
            self._state = _state(file)
            self._from_file = _read(file)
        _no_key_twice(self._listed + self._from_file)

    def __bool__(self) -> bool:
        """Whether a key is asked for. A file that lost its last key still locks the door."""
        return bool(self._listed) or self._file is not None

    @property
    def names(self) -> list[str]:
        return sorted({name for name, _ in self._listed + self._from_file})

    def name_of(self, key: str) -> str | None:
        """Whose key it is. Every known one is compared, each in constant time."""
        self._reread()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self._listed + self._from_file:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _reread(self) -> None:
        if self._file is None or self._clock() - self._looked < REREAD_S:
            return
        self._looked = self._clock()
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            fresh = _read(self._file)
            _no_key_twice(self._listed + fresh)
        except StartError as error:
            log.error("API keys stay as they were: %s", error)
            return
        self._from_file = fresh
        log.info("API keys were read again: %s", ", ".join(self.names) or "none")


def _state(file: Path) -> object:
    """Something that differs once the file does."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _read(file: Path) -> Known:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartError(f"expected a file of API keys at {file}: {why}") from error
    return _parse(("" if line.lstrip().startswith("#") else line for line in lines), f"{file}, line")


def _parse(entries: Iterable[str], where: str) -> Known:
    known = []
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            continue
        name, colon, key = (part.strip() for part in entry.partition(":"))
        if not colon or not _NAME.fullmatch(name):
            raise StartError(f"{where} {number}: expected NAME:KEY, NAME of up to 64 letters, digits, '.', '_' and '-'")
        if hashed := _HASHED.fullmatch(key):
            digest = bytes.fromhex(hashed[1])
        elif len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise StartError(
                f"{where} {number}: expected a key of at least {MIN_KEY_LENGTH} visible ASCII characters, got another "
                f"of {len(key)}, as {name}'s"
            )
        else:
            digest = hashlib.sha256(key.encode()).digest()
        known.append((name, digest))
    return tuple(known)


def _no_key_twice(known: Known) -> None:
    owners: dict[bytes, str] = {}
    for name, digest in known:
        if owners.setdefault(digest, name) != name:
            raise StartError(f"API keys: {name} and {owners[digest]} have the same key")

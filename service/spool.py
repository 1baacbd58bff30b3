"""Where videos wait to be decoded: files without a name, which are gone with the process, however it ends."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.errors import NoRoom, StartError


class Spool:
    """A folder for uploads, and the room that all of them together may take.

    Args:
        folder: the system's temporary folder without it.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._folder = folder

    def check(self) -> None:
        """Raise StartError where uploads could not be written."""
        try:
            with self.file():
                pass
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            detail = f"expected a folder for uploads that can be written at {where}: {error.strerror}"
            raise StartError(detail) from error

    @contextmanager
    def file(self) -> Iterator[SpoolFile]:
        """An empty file, which is gone at the end of the block, and its room is free again.

        Raises:
            NoRoom: the disk is full.
        """
        with _asking_for_room():
            # Without a buffer: what could not be written is not tried again when the file is closed.
            opened = tempfile.TemporaryFile(prefix="ttvideo-", dir=self._folder, buffering=0)  # noqa: SIM115
        with opened:
            file = SpoolFile(self, opened, os.open(f"/dev/fd/{opened.fileno()}", os.O_RDONLY | os.O_CLOEXEC))
            try:
                yield file
            finally:
                os.close(file.descriptor)
                self.used_bytes -= file.num_bytes

    def check_room(self, num_bytes: int) -> None:
        """Raise NoRoom where so many bytes more would be too many."""
        if self.used_bytes + num_bytes > self.max_bytes:
            taken = f"{self.used_bytes} of {self.max_bytes} bytes are taken"
            raise NoRoom(f"expected room for the upload where uploads wait: {taken}")


class SpoolFile:
    """A file that is being filled."""

    def __init__(self, spool: Spool, file: IO[bytes], descriptor: int) -> None:
        self.num_bytes = 0
        self.descriptor = descriptor
        """For reading only: a decoder gets it, and must not write."""
        self._spool, self._file = spool, file

    def write(self, data: bytes) -> None:
        """All of it: a file without a buffer may take less at once.

        Raises:
            NoRoom: the spool or its disk is full.
        """
        self._spool.check_room(len(data))
        self.num_bytes += len(data)
        self._spool.used_bytes += len(data)
        rest = memoryview(data)
        with _asking_for_room():
            while rest:
                rest = rest[self._file.write(rest) :]


@contextmanager
def _asking_for_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(f"expected room for the upload where uploads wait: {error.strerror}") from error

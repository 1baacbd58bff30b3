"""`python -m service classify FILE...`: the server's own path from file to answer, without the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from service.engine.classifier import Classifier, check_top_k
from service.errors import EmptyUpload, RequestError, StartError
from service.schemas import Classification
from service.settings import Settings

STDIN = Path("-")


async def classify(
    paths: list[Path],
    settings: Settings,
    *,
    top_k: int | None = None,
    model: str | None = None,
    version: str | None = None,
    as_json: bool = False,
) -> int:
    """Classify files, `-` being the standard input; print an answer or an error for each, in their order.

    Returns:
        Exit code: 0, or 1 where any file failed.

    Raises:
        StartError: the service cannot start, or there is no such model or top_k.
    """
    with _spooled(paths, settings.spool_dir) as files:
        classifier = Classifier(settings)
        await classifier.start()
        tasks: list[asyncio.Task[Classification | RequestError]] = []
        try:
            try:
                chosen = classifier.repository.find(model, version)
                num_labels = check_top_k(top_k, chosen)
            except RequestError as error:
                raise StartError(error.detail) from error
            places = asyncio.Semaphore(2 * classifier.pool.num_workers)

            async def answer(path: Path) -> Classification | RequestError:
                async with places:
                    try:
                        file, size = _find(path)
                        return await classifier.classify(file, chosen, top_k=num_labels, upload_bytes=size)
                    except RequestError as error:
                        return error

            failed = 0
            with tqdm(total=len(paths), unit="clip", file=sys.stderr, disable=None) as progress:
                tasks += [asyncio.create_task(answer(file)) for file in files]
                for task in tasks:
                    task.add_done_callback(lambda _: progress.update())
                for path, task in zip(paths, tasks, strict=True):
                    result = await task
                    failed += isinstance(result, RequestError)
                    with progress.external_write_mode(file=sys.stdout):
                        _show(path, result, as_json)
        finally:
            await classifier.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return 1 if failed else 0


class FileMissing(RequestError):
    status = 404
    code = "file_missing"
    title = "There is no such file"


@contextlib.contextmanager
def _spooled(paths: list[Path], spool_dir: Path | None) -> Iterator[list[Path]]:
    """The paths, with a file that holds all of the standard input in place of `-`."""
    if STDIN not in paths:
        yield paths
        return
    try:
        spool = tempfile.NamedTemporaryFile(prefix="ttvideo-", dir=spool_dir)  # noqa: SIM115
    except OSError as error:
        raise StartError(f"expected a folder that can be written at {spool_dir}: {error.strerror}") from error
    with spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.flush()
        yield [Path(spool.name) if path == STDIN else path for path in paths]


def _find(path: Path) -> tuple[Path, int]:
    """The file's absolute path and its size."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "not a regular file" if path.exists() else "none"
        raise FileMissing(f"expected a file, found {found}")
    size = path.stat().st_size
    if not size:
        raise EmptyUpload("expected a video, got 0 bytes")
    return path.resolve(), size


def _show(path: Path, result: Classification | RequestError, as_json: bool) -> None:
    if as_json:
        print(_json(path, result), flush=True)
        return
    print(_line(path, result), flush=True)
    if isinstance(result, Classification):
        for warning in result.clip.warnings:
            print(f"{path}: warning: {warning}", file=sys.stderr)


def _json(path: Path, result: Classification | RequestError) -> str:
    if isinstance(result, RequestError):
        names = ("type", "title", "status", "detail", "code")
        return json.dumps({"file": str(path), "error": {name: getattr(result, name) for name in names}})
    return json.dumps({"file": str(path), "classification": result.model_dump(mode="json")})


def _line(path: Path, result: Classification | RequestError) -> str:
    if isinstance(result, RequestError):
        return f"{path}: {result.title}: {result.detail}"
    others = ", ".join(f"{other.label} {other.probability:.3f}" for other in result.top_k[1:])
    return f"{path}: {result.label} {result.probability:.3f}{f' ({others})' if others else ''}"

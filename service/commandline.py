"""`python -m service classify FILE...`: the server's own path from file to answer, without the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from service.engine.classifier import Classifier, Video, question
from service.engine.session import holding
from service.errors import EmptyUpload, NoRoom, RequestError, StartError
from service.schemas import Classification, Timeline
from service.settings import Settings
from service.spool import Spool, SpoolFile

Outcome = Classification | Timeline | RequestError

STDIN = Path("-")


async def classify(
    paths: list[Path],
    settings: Settings,
    *,
    top_k: int | None = None,
    model: str | None = None,
    version: str | None = None,
    window_s: float | None = None,
    stride_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Classify files, `-` being the standard input; print an answer or an error for each, in their order.

    Returns:
        Exit code: 0, or 1 where any file failed.

    Raises:
        StartError: the service cannot start, there is no such model, or it cannot be asked so.
    """
    classifier = Classifier(settings)
    with _spooled(paths, classifier.spool) as files:
        await classifier.start()
        tasks: list[asyncio.Task[Outcome]] = []
        try:
            try:
                chosen = classifier.repository.find(model, version)
                asked = question(chosen, settings, top_k=top_k, window_s=window_s, stride_s=stride_s)
            except RequestError as error:
                raise StartError(error.detail) from error
            places = asyncio.Semaphore(2 * classifier.pool.num_workers)

            async def answer(file: Path | SpoolFile) -> Outcome:
                async with places:
                    try:
                        return await classifier.answer(_video(file), asked)
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
def _spooled(paths: list[Path], spool: Spool) -> Iterator[list[Path | SpoolFile]]:
    """The paths, with a file that holds all of the standard input in place of `-`."""
    if STDIN not in paths:
        yield list(paths)
        return
    spool.check()
    with spool.file() as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
        except NoRoom as error:
            raise StartError(error.detail) from error
        yield [file if path == STDIN else path for path in paths]


def _video(file: Path | SpoolFile) -> Video:
    """The file by its absolute path, or its descriptor."""
    source: Path | int
    if isinstance(file, SpoolFile):
        source, size = file.descriptor, file.num_bytes
    elif file.is_file():
        source, size = file.resolve(), file.stat().st_size
    else:
        found = "a folder" if file.is_dir() else "not a regular file" if file.exists() else "none"
        raise FileMissing(f"expected a file, found {found}")
    if not size:
        raise EmptyUpload("expected a video, got 0 bytes")
    return Video(source, size)


def _show(path: Path, result: Outcome, as_json: bool) -> None:
    if as_json:
        print(_json(path, result), flush=True)
        return
    for line in _lines(result):
        print(f"{path}: {line}", flush=True)
    if not isinstance(result, RequestError):
        for warning in result.clip.warnings:
            print(f"{path}: warning: {warning}", file=sys.stderr)


def _json(path: Path, result: Outcome) -> str:
    if isinstance(result, RequestError):
        names = ("type", "title", "status", "detail", "code")
        return json.dumps({"file": str(path), "error": {name: getattr(result, name) for name in names}})
    kind = "timeline" if isinstance(result, Timeline) else "classification"
    return json.dumps({"file": str(path), kind: result.model_dump(mode="json")})


def _lines(result: Outcome) -> list[str]:
    if isinstance(result, RequestError):
        return [f"{result.title}: {result.detail}"]
    if isinstance(result, Timeline):
        return [f"{span.from_s:.2f} to {span.to_s:.2f} s: {span.label} {span.probability:.3f}" for span in result.spans]
    held = holding(np.array([each.probability for each in result.top_k]), result.model.task).tolist()
    told: dict[bool, list[str]] = {True: [], False: []}
    for each, holds in zip(result.top_k, held, strict=True):
        told[holds].append(f"{each.label} {each.probability:.3f}")
    others = f" ({', '.join(told[False])})" if told[False] else ""
    return [f"{', '.join(told[True]) or 'no label'}{others}"]

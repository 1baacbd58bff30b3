"""`python -m service classify FILE...`: the server's own path from file to answer, without the server."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tqdm import tqdm

from service.engine.classifier import Classifier, check_top_k
from service.errors import RequestError, StartError
from service.schemas import Classification
from service.settings import Settings


async def classify(
    paths: list[Path],
    settings: Settings,
    *,
    top_k: int | None = None,
    model: str | None = None,
    version: str | None = None,
    as_json: bool = False,
) -> int:
    """Classify files, print an answer or an error for each, in their order.

    Returns:
        Exit code: 0, or 1 where any file failed.

    Raises:
        StartError: the service cannot start, or there is no such model or top_k.
    """
    classifier = Classifier(settings)
    await classifier.start()
    try:
        try:
            session = classifier.repository.find(model, version)
            num_labels = check_top_k(top_k, session)
        except RequestError as error:
            raise StartError(error.detail) from error
        places = asyncio.Semaphore(2 * classifier.pool.num_workers)

        async def answer(path: Path) -> Classification | RequestError:
            async with places:
                try:
                    file, size = _find(path)
                    return await classifier.classify(file, session, top_k=num_labels, upload_bytes=size)
                except RequestError as error:
                    return error

        failed = 0
        with tqdm(total=len(paths), unit="clip", file=sys.stderr, disable=None) as progress:
            tasks = [asyncio.create_task(answer(path)) for path in paths]
            for task in tasks:
                task.add_done_callback(lambda _: progress.update())
            for path, task in zip(paths, tasks, strict=True):
                result = await task
                failed += isinstance(result, RequestError)
                with progress.external_write_mode(file=sys.stdout):
                    print(_json(path, result) if as_json else _line(path, result), flush=True)
    finally:
        await classifier.close()
    return 1 if failed else 0


class FileMissing(RequestError):
    status = 404
    code = "file_missing"
    title = "There is no such file"


def _find(path: Path) -> tuple[Path, int]:
    """The file's absolute path and its size."""
    if not path.is_file():
        raise FileMissing(f"expected a file at {path}, found {'a folder' if path.exists() else 'none'}")
    return path.resolve(), path.stat().st_size


def _json(path: Path, result: Classification | RequestError) -> str:
    if isinstance(result, RequestError):
        error = {"code": result.code, "title": result.title, "detail": result.detail}
        return json.dumps({"file": str(path), "error": error})
    return json.dumps({"file": str(path), "classification": result.model_dump(mode="json")})


def _line(path: Path, result: Classification | RequestError) -> str:
    if isinstance(result, RequestError):
        return f"{path}: {result.title}: {result.detail}"
    others = ", ".join(f"{other.label} {other.probability:.3f}" for other in result.top_k[1:])
    return f"{path}: {result.label} {result.probability:.3f}{f' ({others})' if others else ''}"

"""Which model files lie where: NAME/VERSION/model.onnx under the bundled folder and the user's."""

from __future__ import annotations

import logging
from pathlib import Path

from service.errors import StartError

log = logging.getLogger(__name__)

NAMED = 5
"""Of what was found in the wrong place, how many a message names."""


def version_key(version: str) -> tuple[int, int, str]:
    """Numbers in their order, then everything else by letters."""
    return (1, int(version), "") if version.isascii() and version.isdigit() else (0, 0, version)


Files = dict[tuple[str, str], Path]


def model_files(folder: Path) -> Files:
    return {(path.parts[-3], path.parts[-2]): path for path in folder.glob("*/*/model.onnx")}


def own_files(folder: Path) -> Files:
    """Those of `settings.models`. An empty folder waits for its first model; any other without one is a mistake."""
    files = model_files(folder)
    levels = ("*.onnx", "*/*.onnx", "*/*/*.onnx", "*/*/*/*.onnx")
    astray = sorted(path for level in levels for path in folder.glob(level) if path not in files.values())
    if files:
        for path in astray:
            log.warning("%s is not served: expected NAME/VERSION/model.onnx under %s", path, folder)
        return files
    found = [str(path.relative_to(folder)) for path in astray] or sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".")
    )
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise StartError(
            f"expected models at NAME/VERSION/model.onnx under {folder}, found {', '.join(found[:NAMED])}{more}"
        )
    log.warning("no model of your own is served: expected NAME/VERSION/model.onnx under %s, which is empty", folder)
    return files


def default_model(asked: str | None, files: Files, own: Files, bundled: Files) -> tuple[str, str | None]:
    """Name and, where it was fixed, version of the model that answers when a request names none."""
    if asked is not None:
        name, _, version = asked.partition("/")
        if not any(name == n and version in ("", v) for n, v in files):
            there = ", ".join(f"{n}/{v}" for n, v in files)
            raise StartError(f"expected the default model to be one of {there}, got {asked}")
        return name, version or None
    own_names = {name for name, _ in own}
    if len(own_names) == 1:
        return own_names.pop(), None
    bundled_names = sorted({name for name, _ in bundled})
    if bundled_names:
        return bundled_names[0], None
    raise StartError(
        f"expected TTVIDEO_DEFAULT_MODEL to choose among {', '.join(sorted(own_names))}; there is no bundled model"
    )

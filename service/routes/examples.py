"""An example of every answer, for the description of the interface.

`examples.json` beside this file has, under `answers`, what a service with the bundled model answered, by operation and
by what was asked, and under `details` what each kind of error says.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from service.errors import BY_CODE
from service.routes.problem import described
from service.schemas import InferenceError

FILE = Path(__file__).with_suffix(".json")
REQUEST_ID = "5d41402abc4b2a76b9719d911017c592"


def of_answer(operation: str) -> dict[str, Any]:
    """Those of an operation that went well, by what was asked."""
    answers: dict[str, Any] = _read()["answers"]
    return {asked: {"value": value} for asked, value in answers.get(operation, {}).items()}


def of_error(code: str, *, v2: bool) -> dict[str, Any]:
    """The body of an error."""
    kind, detail = BY_CODE[code], _read()["details"][code]
    if v2:
        return InferenceError(error=detail).model_dump()
    return described(kind.status, code, kind.title, detail, REQUEST_ID).model_dump()


@functools.cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found

"""What the interface's description says beside what FastAPI sees by itself: problems, headers, the upload's limit."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.errors import UploadTooLarge
from service.schemas import Problem
from service.video.probe import CONTAINERS

DESCRIPTION = """\
Upload a video of at most {max_upload_bytes} bytes ({mebibytes:g} MiB), as one of {containers}.

Errors are problems of RFC 9457 with a stable `code`. Every answer carries an X-Request-ID: the request's own, where it
is harmless, else a new one; the service's log holds a line under it.
"""
_REQUEST_ID = {"description": "The request's id, as in the service's log.", "schema": {"type": "string"}}


def description(max_upload_bytes: int) -> str:
    return DESCRIPTION.format(
        max_upload_bytes=max_upload_bytes,
        mebibytes=round(max_upload_bytes / 2**20, 1),
        containers=", ".join(CONTAINERS.values()),
    )


def install(app: FastAPI, max_upload_bytes: int) -> None:
    """Complete the schema that `app` answers under /openapi.json."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            for path in schema["paths"].values():
                for operation in path.values():
                    for status, answer in operation["responses"].items():
                        answer.setdefault("headers", {})["X-Request-ID"] = _REQUEST_ID
                        if status == str(UploadTooLarge.status):
                            answer["description"] += f" The limit is {max_upload_bytes} bytes."
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]

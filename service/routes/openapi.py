"""What the interface's description says beside what FastAPI sees by itself: problems, headers, examples, limits."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from service.errors import ForeignOrigin, RateLimited, Unauthorized, UploadTooLarge
from service.routes import examples
from service.routes.health import PROBES
from service.routes.problem import MEDIA_TYPE, is_v2, problems
from service.routes.v2.schemas import IndexRequest, InferenceRequest
from service.schemas import InferenceError, Problem
from service.video.probe import CONTAINERS

DESCRIPTION = """\
Upload a video of at most {max_upload_bytes} bytes ({mebibytes:g} MiB), as one of {containers}.

Live video goes to the WebSocket /stream, which this description has no words for; the README has.

Errors are problems of RFC 9457 with a stable `code`; under /v2, which is the Open Inference Protocol, they are its
`{{"error": ...}}`. Every answer carries an X-Request-ID: the request's own, where it
is harmless, else a new one; the service's log holds a line under it.
"""
_REQUEST_ID = {"description": "The request's id, as in the service's log.", "schema": {"type": "string"}}
_READ_BY_HAND = (Problem, InferenceError, InferenceRequest, IndexRequest)
"""What FastAPI does not see, since the routes read or write it themselves."""
_NEVER_ANSWERED = ("HTTPValidationError", "ValidationError")
"""What FastAPI says of every path with a name in it. Any name is a string, so it cannot be."""
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_V2_ERROR = {"$ref": "#/components/schemas/InferenceError"}


def description(max_upload_bytes: int) -> str:
    return DESCRIPTION.format(
        max_upload_bytes=max_upload_bytes,
        mebibytes=round(max_upload_bytes / 2**20, 1),
        containers=", ".join(CONTAINERS.values()),
    )


def install(app: FastAPI, max_upload_bytes: int, *, with_keys: bool = False, with_rates: bool = False) -> None:
    """Complete the schema that `app` answers under /openapi.json.

    Args:
        with_keys, with_rates: whether requests need a key, and may come too often.
    """
    refusals = problems(*([Unauthorized] if with_keys else []), *([RateLimited] if with_rates else []))
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()
            components = schema["components"]["schemas"]
            for kind in _READ_BY_HAND:
                described = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                components |= described.pop("$defs", {}) | {kind.__name__: described}
            for name in _NEVER_ANSWERED:
                components.pop(name, None)
            if with_keys:
                schema["components"]["securitySchemes"] = _SCHEMES
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    if method == "post":
                        operation["responses"].setdefault("403", problems(ForeignOrigin)[403])
                    if path not in PROBES:
                        operation["responses"] |= {str(status): deepcopy(about) for status, about in refusals.items()}
                        if with_keys:
                            operation["security"] = [{name: []} for name in _SCHEMES]
                    if is_v2(path) and _NEVER_ANSWERED[0] in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
                    for status, answer in operation["responses"].items():
                        _exemplify(operation["operationId"], answer.get("content", {}), v2=is_v2(path))
                        answer.setdefault("headers", {})["X-Request-ID"] = _REQUEST_ID
                        if status == str(UploadTooLarge.status) and not is_v2(path):
                            answer["description"] += f" The limit is {max_upload_bytes} bytes."
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _exemplify(operation: str, content: dict[str, Any], *, v2: bool) -> None:
    """Give an answer's content its examples, and an error under /v2 its form."""
    if MEDIA_TYPE in content:
        said = content.pop(MEDIA_TYPE)
        shown = {code: about | {"value": examples.of_error(code, v2=v2)} for code, about in said["examples"].items()}
        form = {"schema": _V2_ERROR} if v2 else said
        content["application/json" if v2 else MEDIA_TYPE] = form | {"examples": shown}
    else:
        for answer in content.values():
            answer["examples"] = examples.of_answer(operation)

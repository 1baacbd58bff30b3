"""/v2/logging and /v2/trace/setting: shown, and not changed, since the service's settings are those of its start."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import RootModel

from service.engine.classifier import Classifier
from service.errors import InvalidInference, UnknownModel
from service.routes.problem import problems
from service.routes.v2.body import ANY_JSON, BODY_ERRORS, receive_json
from service.routes.v2.schemas import Parameters

router = APIRouter(prefix="/v2")

LEVELS = ("debug", "info", "warning", "error")
_ERRORS = problems(*BODY_ERRORS)
_MODEL_ERRORS = problems(UnknownModel, *BODY_ERRORS)


@router.get("/logging", name="log_settings")
async def log_settings(request: Request) -> Parameters:
    """What is logged."""
    classifier: Classifier = request.app.state.classifier
    level = LEVELS.index(classifier.settings.log_level)
    return {
        "log_file": "",
        "log_info": level <= LEVELS.index("info"),
        "log_warning": level <= LEVELS.index("warning"),
        "log_error": True,
        "log_verbose_level": int(level == LEVELS.index("debug")),
        "log_format": "default",
    }


@router.post("/logging", name="update_log_settings", openapi_extra=ANY_JSON, responses=_ERRORS)
async def update_log_settings(request: Request) -> Parameters:
    """The same, where nothing is to change; an error where something is."""
    return await _unchanged(request, await log_settings(request), "TTVIDEO_LOG_LEVEL sets it")


@router.get("/trace/setting", name="trace_settings")
async def trace_settings() -> Parameters:
    """No request is traced in the protocol's way."""
    return {"trace_level": ["OFF"], "trace_rate": "0", "trace_count": "0", "log_frequency": "0", "trace_file": ""}


@router.post("/trace/setting", name="update_trace_settings", openapi_extra=ANY_JSON, responses=_ERRORS)
async def update_trace_settings(request: Request) -> Parameters:
    """The same, where nothing is to change; an error where something is."""
    return await _unchanged(request, await trace_settings(), "requests are not traced")


@router.get("/models/{name}/trace/setting", name="model_trace_settings", responses=problems(UnknownModel))
async def model_trace_settings(request: Request, name: str) -> Parameters:
    """No request to the model is traced in the protocol's way."""
    classifier: Classifier = request.app.state.classifier
    classifier.repository.find(name)
    return await trace_settings()


@router.post(
    "/models/{name}/trace/setting", name="update_model_trace_settings", openapi_extra=ANY_JSON, responses=_MODEL_ERRORS
)
async def update_model_trace_settings(request: Request, name: str) -> Parameters:
    """The same, where nothing is to change; an error where something is."""
    return await _unchanged(request, await model_trace_settings(request, name), "requests are not traced")


async def _unchanged(request: Request, there: Parameters, why: str) -> Parameters:
    asked = (await receive_json(request, RootModel[Parameters])).root
    for key, value in asked.items():
        # Null clears a setting, and all of these are as they would be then.
        if key not in there or value not in (None, there[key]):
            raise InvalidInference(f"{key}: expected {there.get(key, 'no such setting')!r}, since {why}; got {value!r}")
    return there

"""GET /v2: what the service is, what its models take and give, and what they have done."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from service import __version__
from service.engine.classifier import Classifier
from service.engine.model import Model
from service.engine.repository import Entry, Repository
from service.engine.signature import STATES, Tensor
from service.engine.statistics import Spent
from service.errors import NotReady, UnknownModel
from service.routes.health import check_ready
from service.routes.problem import problems
from service.routes.v2.schemas import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    StatisticsList,
    TensorMetadata,
)
from service.settings import Settings

router = APIRouter(prefix="/v2")

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "sequence",
    "statistics",
]


@router.get("")
async def server_metadata() -> ServerMetadata:
    """The service, and what it does beside the protocol's core."""
    return ServerMetadata(name="ttvideo", version=__version__, extensions=EXTENSIONS)


@router.get("/health/live", name="server_live", response_class=Response)
async def server_live() -> Response:
    """The process answers."""
    return Response()


@router.get("/health/ready", name="server_ready", response_class=Response, responses=problems(NotReady))
async def server_ready(request: Request) -> Response:
    """Every model is warm, a decoder lives, and no shutdown has begun."""
    check_ready(request.app.state.classifier)
    return Response()


@router.get("/models/stats", name="all_statistics")
async def all_statistics(request: Request) -> StatisticsList:
    """What every model that is served has done."""
    repository = _repository(request)
    return StatisticsList(model_stats=[_statistics(repository.entry(model)) for model in repository.models])


@router.get("/models/{name}/ready", name="model_ready", response_class=Response, responses=problems(UnknownModel))
@router.get(
    "/models/{name}/versions/{version}/ready",
    name="model_version_ready",
    response_class=Response,
    responses=problems(UnknownModel),
)
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """The model is served."""
    _repository(request).find(name, version)
    return Response()


@router.get(
    "/models/{name}/config", name="model_config", response_model_exclude_none=True, responses=problems(UnknownModel)
)
@router.get(
    "/models/{name}/versions/{version}/config",
    name="model_version_config",
    response_model_exclude_none=True,
    responses=problems(UnknownModel),
)
async def model_config(request: Request, name: str, version: str | None = None) -> ModelConfig:
    """What the model takes and gives and how it is served, in the form of Triton's model configuration."""
    classifier: Classifier = request.app.state.classifier
    model = classifier.repository.find(name, version)
    settings = classifier.settings
    kind = "KIND_GPU" if model.session.provider == "cuda" else "KIND_CPU"
    delay_us = int(1000 * settings.max_queue_delay_ms)
    batching = {"preferred_batch_size": [], "max_queue_delay_microseconds": delay_us, "preserve_ordering": True}
    return ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=BACKEND,
        version_policy={"all": {}},
        max_batch_size=model.max_batch,
        input=[
            _config(_beside_batch(tensor))
            | ({"reshape": {"shape": []}} if len(tensor.shape) == 1 else {})
            | {"optional": tensor.name == "lengths" or tensor.name in model.initial_state}
            for tensor in model.inputs
        ],
        output=[_config(tensor) for tensor in model.outputs],
        instance_group=[{"name": f"{model.name}_0", "kind": kind, "count": 1}],
        default_model_filename="model.onnx",
        dynamic_batching=None if model.clip_fault or model.states else batching,
        sequence_batching=_sequence_batching(model, settings) if model.states else None,
    )


@router.get("/models/{name}/stats", name="model_statistics", responses=problems(UnknownModel))
@router.get(
    "/models/{name}/versions/{version}/stats", name="model_version_statistics", responses=problems(UnknownModel)
)
async def model_statistics(request: Request, name: str, version: str | None = None) -> StatisticsList:
    """What the model has done, in all its versions or one."""
    repository = _repository(request)
    models = _all_versions(repository, name) if version is None else [repository.find(name, version)]
    return StatisticsList(model_stats=[_statistics(repository.entry(model)) for model in models])


@router.get("/models/{name}", name="model_metadata", responses=problems(UnknownModel))
@router.get("/models/{name}/versions/{version}", name="model_version_metadata", responses=problems(UnknownModel))
async def model_metadata(request: Request, name: str, version: str | None = None) -> ModelMetadata:
    """What the model takes and gives."""
    repository = _repository(request)
    model = repository.find(name, version)
    return ModelMetadata(
        name=model.name,
        versions=[version] if version else [one.version for one in _all_versions(repository, name)],
        platform=PLATFORM,
        inputs=[_tensor(_beside_batch(tensor)) for tensor in model.inputs],
        outputs=[_tensor(tensor) for tensor in model.outputs],
    )


def _repository(request: Request) -> Repository:
    classifier: Classifier = request.app.state.classifier
    return classifier.repository


def _all_versions(repository: Repository, name: str) -> list[Model]:
    repository.find(name)
    return [model for model in repository.models if model.name == name]


def _tensor(tensor: Tensor) -> TensorMetadata:
    shape = [-1 if isinstance(size, str) else size for size in tensor.shape]
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)


def _beside_batch(tensor: Tensor) -> Tensor:
    """A dimension of 1 beside the batch where there would be none, which perf_analyzer does not take."""
    return tensor if len(tensor.shape) > 1 else replace(tensor, shape=(*tensor.shape, 1))


def _config(tensor: Tensor) -> dict[str, object]:
    """Without the batch, as the configuration has it."""
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": _tensor(tensor).shape[1:]}


def _sequence_batching(model: Model, settings: Settings) -> dict[str, object]:
    """How sequences are kept. The graph has no inputs for their controls: the service acts on these itself."""
    states = [
        {
            "input_name": state.input,
            "output_name": state.output,
            "data_type": f"TYPE_{STATES[state.dtype]}",
            "dims": list(state.shape),
            "initial_state": [{"name": "zeros", "zero_data": True}],
        }
        for state in model.states
    ]
    return {
        "max_sequence_idle_microseconds": round(1e6 * settings.sequence_idle_s),
        "oldest": {"max_candidate_sequences": settings.max_sequences, "preserve_ordering": True},
        "control_input": [],
        "state": states,
    }


def _statistics(entry: Entry) -> ModelStatistics:
    statistics = entry.statistics
    nothing = _duration(Spent())
    return ModelStatistics(
        name=entry.name,
        version=entry.version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.num_inferences,
        execution_count=statistics.num_executions,
        inference_stats=InferenceStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.gather),
            compute_infer=_duration(statistics.run),
            compute_output=_duration(Spent(statistics.success.count)),
            cache_hit=nothing,
            cache_miss=nothing,
        ),
        batch_stats=[
            BatchStatistics(
                batch_size=size,
                compute_input=_duration(execution.gather),
                compute_infer=_duration(execution.run),
                compute_output=_duration(Spent(execution.run.count)),
            )
            for size, execution in sorted(statistics.by_batch.items())
        ],
    )


def _duration(spent: Spent) -> Duration:
    return Duration(count=spent.count, ns=round(1e9 * spent.seconds))

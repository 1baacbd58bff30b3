"""The bodies of the Open Inference Protocol, version 2. What stands under a field describes it in the interface."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from service.engine.repository import State
from service.engine.signature import Datatype

Parameters = dict[str, Any]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ServerMetadata(_Body):
    """The service."""

    name: str
    """Always `ttvideo`."""
    version: str
    """Of the service."""
    extensions: list[str]
    """What it does beside the protocol's core."""


class TensorMetadata(_Body):
    """An input or output."""

    name: str
    """As in requests and answers."""
    datatype: Datatype
    """Of its numbers."""
    shape: list[int]
    """-1 where any size goes; the batch comes first."""


class ModelMetadata(_Body):
    """What a model takes and gives."""

    name: str
    """As in the path."""
    versions: list[str]
    """Those that are served; only the one asked for where one was."""
    platform: str
    """Always `onnxruntime_onnx`."""
    inputs: list[TensorMetadata]
    """In the order of the graph."""
    outputs: list[TensorMetadata]
    """In the order of the graph, and `probabilities` after them."""


class ModelConfig(_Body):
    """The same and more, in the form of Triton's model configuration."""

    name: str
    """As in the path."""
    platform: str
    """Always `onnxruntime_onnx`."""
    backend: str
    """Always `onnxruntime`."""
    version_policy: Parameters
    """Every version in the folder is served."""
    max_batch_size: int
    """The most that a request may hold, and that one run takes."""
    input: list[Parameters]
    """name, data_type, dims without the batch, optional."""
    output: list[Parameters]
    """name, data_type, dims without the batch."""
    instance_group: list[Parameters]
    """Where it runs."""
    default_model_filename: str
    """Always `model.onnx`."""
    dynamic_batching: Parameters | None = None
    """How long a request waits for company, where requests are batched."""
    sequence_batching: Parameters | None = None
    """How sequences are kept, where a clip may come in pieces."""
    parameters: Parameters = {}
    """None."""


class Duration(_Body):
    """Of everything of its kind since the model was first loaded."""

    count: int
    """How many."""
    ns: int
    """Nanoseconds, in all."""


class InferenceStatistics(_Body):
    """Requests, and where their time went."""

    success: Duration
    """Answered."""
    fail: Duration
    """Refused, too late or failed."""
    queue: Duration
    """Waiting for the model."""
    compute_input: Duration
    """Putting a batch together."""
    compute_infer: Duration
    """The model's runs."""
    compute_output: Duration
    """Nothing: outputs are handed on as they are."""
    cache_hit: Duration
    """None: there is no cache."""
    cache_miss: Duration
    """None: there is no cache."""


class BatchStatistics(_Body):
    """Runs of one batch size."""

    batch_size: int
    """Clips, or rows."""
    compute_input: Duration
    """Putting the batch together."""
    compute_infer: Duration
    """The run."""
    compute_output: Duration
    """Nothing: outputs are handed on as they are."""


class ModelStatistics(_Body):
    """What one version has done, /classify included."""

    name: str
    """As in the path."""
    version: str
    """As in the path."""
    last_inference: int
    """Milliseconds since the epoch; 0 before the first."""
    inference_count: int
    """Clips, or rows."""
    execution_count: int
    """Runs of the model."""
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    """By size."""


class StatisticsList(_Body):
    """Statistics of every version asked for."""

    model_stats: list[ModelStatistics]
    """By name, versions ascending."""


class IndexRequest(_Body):
    """Which models to list."""

    ready: StrictBool = False
    """Only those that are served."""


class IndexEntry(_Body):
    """A name and version in the folders, or that was there."""

    name: str
    """Of its folder."""
    version: str
    """Of the folder inside."""
    state: State
    """Served, on its way in, on its way out, or neither."""
    reason: str
    """Why it is not served; or, while it is, why a newer file in its place was refused."""


class RequestTensor(_Body):
    """An input on its way in."""

    name: str
    """Of the input."""
    shape: list[Annotated[int, Field(ge=1)]]
    """The batch comes first."""
    datatype: str
    """Of its numbers, as the model's metadata has it."""
    parameters: Parameters = {}
    """`binary_data_size` where the values follow the JSON."""
    data: Any = None
    """The values, flat or in rows; none where they follow the JSON."""


class RequestedOutput(_Body):
    """An output that is asked for."""

    name: str
    """Of the output."""
    parameters: Parameters = {}
    """`binary_data`: whether its values are to follow the JSON; `classification`: how many labels, in their place."""


class InferenceRequest(_Body):
    """The JSON head of a request."""

    id: str = ""
    """Comes back in the answer."""
    parameters: Parameters = {}
    """`binary_data_output`: the choice for outputs that do not choose; `timeout`: microseconds until the answer;
    `sequence_id`, `sequence_start` and `sequence_end`: which clip the request is a piece of, and whether it begins or
    ends it."""
    inputs: list[RequestTensor]
    """In any order. `lengths` may be left out where all frames count, and states where they are zeros or kept by the
    service."""
    outputs: list[RequestedOutput] = []
    """All of them without it."""


class ResponseTensor(_Body):
    """An output on its way out."""

    name: str
    """Of the output."""
    datatype: str
    """Of its values; BYTES where a classification was asked for."""
    shape: list[int]
    """The batch comes first."""
    parameters: Parameters | None = None
    """`binary_data_size` where the values follow the JSON."""
    data: list[Any] | None = None
    """The values, row by row; None where they follow the JSON."""


class InferenceResponse(_Body):
    """The JSON head of an answer."""

    model_name: str
    """Which model answered."""
    model_version: str
    """Which version."""
    id: str | None = None
    """The request's own."""
    parameters: Parameters
    """`provider` and `model_sha256`: where it ran, and which file."""
    outputs: list[ResponseTensor]
    """Those asked for, or all."""

"""What a model file must say about itself.

An ONNX file carries one metadata key, `ttvideo.manifest`, holding this as JSON. The service refuses a file without
it, and nothing about a model is configured anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidModel
from service.video.sampling import Sampling

METADATA_KEY = "ttvideo.manifest"
FORMAT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scaling(_Part):
    """What the graph does to a pixel before the network sees it: (pixel / 255 - mean) / std, per RGB channel."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.5,
        0.5,
        0.5,
    )


class Compression(_Part):
    """Weights of the dense counterpart divided by the weights kept, for three ways of counting."""

    input_to_hidden: float
    rnn: float
    model: float


class Architecture(_Part):
    """The network in the file: a TT-matrix from a frame to the gates, a recurrence, a linear head."""

    cell: Literal["rnn", "gru", "lstm"]
    input_modes: tuple[int, ...]
    output_modes: tuple[int, ...]
    tt_ranks: tuple[int, ...]
    hidden_size: int
    num_parameters: int
    compression: Compression


class Contraction(_Part):
    """How the TT-matrix meets the frames: `groups` of neighbouring cores, each merged into one factor."""

    groups: tuple[int, ...]
    direction: Literal["right_to_left", "left_to_right"]
    flops_per_frame: int


class Parity(_Part):
    """Largest absolute difference of logits to the trained model in torch, over sizes that the export never saw."""

    max_abs_error: float
    tolerance: float
    sizes: tuple[tuple[int, int], ...]
    """[batch, time] of each comparison."""


class DataSet(_Part):
    name: str
    num_clips: dict[str, int] = {}
    """Clips per split."""


class Metrics(_Part):
    """Figures of one evaluation."""

    split: str
    num_clips: int
    accuracy: float
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Row: true class; column: predicted class; order of `labels`."""


class Manifest(_Part):
    """Everything the service knows of a model, and everything a reader of the file should.

    Raises:
        InvalidModel: from `from_metadata`, with what was expected and what came.
    """

    format_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    task: Literal["single_label", "multi_label"] = "single_label"
    sampling: Sampling
    scaling: Scaling
    architecture: Architecture
    contraction: Contraction
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    opset: int
    parity: Parity
    temperature: Annotated[float, Field(gt=0)] = 1.0
    data_set: DataSet
    metrics: tuple[Metrics, ...] = ()
    checkpoint_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    exporter_version: str

    @model_validator(mode="after")
    def _labels_differ(self) -> Manifest:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {list(self.labels)}")
        return self

    def to_metadata(self) -> dict[str, str]:
        return {METADATA_KEY: self.model_dump_json()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, source: str = "the model file") -> Manifest:
        """Read the manifest from an ONNX file's metadata properties."""
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise InvalidModel(
                f"{source}: expected the metadata key {METADATA_KEY!r}, found {sorted(metadata) or 'no metadata'}; "
                "export the model with `python -m exporters.to_onnx`"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise InvalidModel(f"{source}: its manifest does not fit format {FORMAT_VERSION}: {faults}") from error

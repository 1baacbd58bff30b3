"""What a model file must say about itself.

An ONNX file carries one metadata key, `ttvideo.manifest`, holding this as JSON. The service refuses a file without
it, and nothing about a model is configured anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidModel
from service.video.sampling import Sampling

METADATA_KEY = "ttvideo.manifest"
FORMAT_VERSION = 1

Task = Literal["single_label", "multi_label"]
"""Whether one label holds for a clip (softmax) or any number (sigmoid)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Scaling(_Part):
    """What the graph does to a pixel before the network sees it: (pixel / 255 - mean) / std, per RGB channel."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of red, green and blue, on a scale from 0 to 1."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.5,
        0.5,
        0.5,
    )
    """Of red, green and blue, on a scale from 0 to 1."""


class Compression(_Part):
    """Weights of the dense counterpart divided by the weights kept, for three ways of counting."""

    input_to_hidden: float
    """The matrix from the frame to the gates alone."""
    rnn: float
    """The whole recurrent layer."""
    model: float
    """Everything, the head included."""


class Architecture(_Part):
    """The network in the file: a TT-matrix from a frame, or from what a frozen backbone says of it, to the gates, a
    recurrence, a linear head."""

    backbone: str = ""
    """What reads the frames; nothing where the TT-matrix does."""
    backbone_features: Literal["pooled", "map"] = "pooled"
    """What the TT-matrix reads of a backbone: the means of its last map by channel, or the whole of it."""
    backbone_weights: int = 0
    """How many it has."""
    backbone_sha256: str = ""
    """Of the file that they are from."""
    cell: Literal["rnn", "gru", "lstm"]
    """The kind of recurrence."""
    num_layers: int = 1
    """Recurrences above one another; a further one reads the hidden states of the one before it by a train too."""
    bidirectional: bool = False
    """Whether each layer reads the clip from its end too. Then the logits over time know the frames to come."""
    activation: str = "tanh"
    """Of the new state."""
    recurrent_activation: str = "sigmoid"
    """Of the gates; an RNN has none."""
    reset_after: bool = True
    """Whether a GRU's reset gate comes after the hidden product, as torch has it, or before."""
    difference: bool = False
    """Whether it reads what changes from each frame to the next. Before the first is one like it."""
    recurrent_ranks: tuple[int, ...] = ()
    """Inner TT-ranks of the hidden-to-hidden matrix, one for all or each; it is dense without them."""
    input_modes: tuple[int, ...]
    """Factors of the size of a frame or of its features, one a core."""
    output_modes: tuple[int, ...]
    """Factors of the gates' size, one a core."""
    tt_ranks: tuple[int, ...]
    """Between the cores; the first and the last are 1."""
    hidden_size: int
    """Units of the recurrence."""
    num_parameters: int
    """Of all that was trained."""
    compression: Compression


class TTLayer(_Part):
    """A TT-matrix, and how it is contracted."""

    input_modes: tuple[int, ...]
    """Factors of the size of what it reads, one a core."""
    output_modes: tuple[int, ...]
    """Factors of the size of what it gives."""
    tt_ranks: tuple[int, ...]
    """Between the cores; the first and the last are 1."""
    groups: tuple[int, ...]
    """Neighbouring cores that are merged into one factor, from the left."""
    direction: Literal["right_to_left", "left_to_right"]
    """The order in which the input meets the factors."""


class TimedPlan(_Part):
    """A way to contract, and how long the model took with it."""

    groups: tuple[int, ...]
    """Cores in each group, from the left."""
    direction: Literal["right_to_left", "left_to_right"]
    """The order in which the frame meets the factors."""
    milliseconds: float
    """For one clip of the sampling's length, the best of several runs."""


class Contraction(_Part):
    """How the TT-matrix meets the frames: `groups` of neighbouring cores, each merged into one factor."""

    groups: tuple[int, ...]
    """Cores in each group, from the left."""
    direction: Literal["right_to_left", "left_to_right"]
    """The order in which the frame meets the factors."""
    flops_per_frame: int
    """Additions and multiplications, of both directions where there are two."""
    target: Literal["cpu", "cuda"] = "cpu"
    """What the graph was made for. It runs elsewhere too."""
    measured: tuple[TimedPlan, ...] = ()
    """The plans that were timed, the fastest first; none where a cost model alone chose."""
    measured_on: str = ""
    """The machine that timed them."""


class State(_Part):
    """One part of what a streaming model carries from one piece of a clip to the next; zeros before the first."""

    input: str
    """The graph's input that takes it."""
    output: str
    """The graph's output that gives it for the next piece."""
    dtype: Literal["float32", "int32", "uint8"]
    """Of its numbers."""
    shape: tuple[int, ...]
    """Behind the batch."""


class Parity(_Part):
    """Largest absolute difference of logits to the model in torch, over sizes that the export never saw. The model has
    the file's own weights: the trained ones at fp32, those as rounded at int8 and fp16; of a backbone in int8 also what
    lies between its convolutions is rounded as in the file. What the rounding itself changes is in the
    `precision_report`."""

    max_abs_error: float
    """The largest difference found."""
    largest_logit: float | None = None
    """Of the model in torch, its absolute value; None in files by versions that did not say."""
    tolerance: float
    """The largest that the export would have let pass, times the largest logit of a comparison where that is above
    1."""
    sizes: tuple[tuple[int, ...], ...]
    """[batch, time] of each comparison; [batch] where there is no time."""


class PrecisionReport(_Part):
    """What a precision below fp32 changed, by the same clips through both graphs."""

    clips: str
    """Which clips."""
    num_clips: int
    """How many."""
    label_agreement: float
    """Share of clips of which both say the same label; of a multi-label model, share of the labels of all clips that
    hold by both or by neither."""
    max_probability_difference: float
    """The largest, over all clips and labels."""
    max_logit_difference: float | None = None
    """The same of logits, before the temperature; None in files by versions that did not say."""
    accuracy: float | None = None
    """As in `Metrics`; None where the clips have no labels."""
    accuracy_fp32: float | None = None
    """The same at fp32."""
    mean_ap: float | None = None
    """As in `Metrics`; None but for a multi-label model and labelled clips."""
    mean_ap_fp32: float | None = None
    """The same at fp32."""


class DataSet(_Part):
    """What the model was trained on."""

    name: str
    """As its maker calls it."""
    num_clips: dict[str, int] = {}
    """Clips per split."""


class Metrics(_Part):
    """Figures of one evaluation."""

    split: str
    """Which clips."""
    num_clips: int
    """How many."""
    accuracy: float
    """Share of clips whose likeliest label was the true one; of a multi-label model, share of clips of which every
    label was told right at the probability 1/2."""
    mean_ap: float | None = None
    """Of a multi-label model: the mean of average precision over the labels that hold for a clip."""
    loss: float | None = None
    """Mean cross-entropy of the probabilities, in nats a clip; of a multi-label model of a label. None, like the next,
    in files by versions that did not say."""
    calibration_error: float | None = None
    """How far confidence is from accuracy: the mean of their difference over 15 equally wide bins of confidence (Guo et
    al., On Calibration of Modern Neural Networks, ICML 2017, equation 5); of a multi-label model over those of every
    label's probability."""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Row: true class; column: predicted class; order of `labels`. None of a multi-label model."""


class ModelFile(_Part):
    """What every model file says of itself."""

    format_version: Literal[1] = 1
    """Of this description."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    """As in `?model=`, and as the model's folder is called."""
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """As in `?version=`, and as the folder inside is called."""
    description: str = ""
    """The maker's words."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """In the order of the logits."""
    task: Task = "single_label"
    """Whether one label holds for a clip (softmax) or any number (sigmoid)."""
    opset: int
    """Of ONNX."""
    parity: Parity
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The logits are divided by it before they become probabilities."""
    data_set: DataSet
    metrics: tuple[Metrics, ...] = ()
    """How the model did, one for each set of clips."""
    checkpoint_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the checkpoint that was exported."""
    exporter_version: str
    """Of the program that exported it."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {list(self.labels)}")
        return self

    def to_metadata(self) -> dict[str, str]:
        return {METADATA_KEY: self.model_dump_json()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, source: str = "the model file") -> Self:
        """Read the manifest from an ONNX file's metadata properties.

        Raises:
            InvalidModel: says what was expected and what came.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise InvalidModel(
                f"{source}: expected the metadata key {METADATA_KEY!r}, found {sorted(metadata) or 'no metadata'}; "
                "export the model with `python -m exporters.to_onnx`"
            )
        if (newer := _format_version(text)) > FORMAT_VERSION:
            raise InvalidModel(
                f"{source}: its manifest has the format_version {newer}, this code reads up to {FORMAT_VERSION}; "
                "upgrade ttvideo"
            )
        read = get_args(cls.model_fields["reads"].annotation)
        if (reads := _reads(text)) not in read:
            raise InvalidModel(f"{source}: expected a model that reads {' or '.join(read)}, got one that reads {reads}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise InvalidModel(f"{source}: its manifest does not fit format {FORMAT_VERSION}: {faults}") from error


class Manifest(ModelFile):
    """Everything the service knows of a model of clips, and everything a reader of the file should."""

    reads: Literal["clips"] = "clips"
    """What comes in: `frames` uint8 [batch, time, height, width, 3] and `lengths` int32 [batch]."""
    sampling: Sampling
    scaling: Scaling
    architecture: Architecture
    contraction: Contraction
    states: tuple[State, ...] = ()
    """What a model takes and gives beside the rest so that a clip may come in pieces; none where it comes whole. The
    logits are then those of all that came so far. Batch and time are at least 1; a clip of which nothing came has the
    length 0."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """The numbers that the frames are projected with, or that the backbone computes with; what follows is fp32."""
    precision_report: PrecisionReport | None = None
    """How far that is from fp32; None where it is fp32."""


class MLPManifest(ModelFile):
    """What a file of TTLinear layers without a recurrence says. The service serves it as plain tensors."""

    reads: Literal["images", "features"]
    """What comes in: `images` uint8 [batch, height, width, channels], or `features` float32 [batch, features]."""
    input_shape: tuple[int, ...]
    """Behind the batch."""
    mean: tuple[float, ...]
    """Taken from the input inside the graph, one for all or one each channel or feature; pixels run from 0 to 1."""
    std: tuple[float, ...]
    """Then divides it, alike."""
    layers: tuple[TTLayer, ...]
    """In their order; a linear head follows."""
    activation: str
    """Of each layer."""
    num_parameters: int
    """Of the whole model."""
    compression: float
    """Weights of the same network with dense layers, divided by those kept."""


def read_manifest(metadata: Mapping[str, str], *, source: str = "the model file") -> Manifest | MLPManifest:
    """The manifest of a file of either kind.

    Raises:
        InvalidModel: says what was expected and what came.
    """
    of_mlp = _reads(metadata.get(METADATA_KEY, "")) in get_args(MLPManifest.model_fields["reads"].annotation)
    kind: type[Manifest] | type[MLPManifest] = MLPManifest if of_mlp else Manifest
    return kind.from_metadata(metadata, source=source)


def _reads(text: str) -> str:
    """What the model of a manifest reads, as far as it says."""
    return str(_values(text).get("reads", "clips"))


def _format_version(text: str) -> int:
    """Of a manifest, as far as it says."""
    version = _values(text).get("format_version", FORMAT_VERSION)
    return version if isinstance(version, int) else FORMAT_VERSION


def _values(text: str) -> dict[str, Any]:
    """A manifest's fields; none where it is no JSON object, which then does not fit, and why is told."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}

"""Configurations of models and of training runs: frozen, checked, and to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from service.manifest import Scaling, Task
from service.video import Sampling
from ttmodels.activations import ACTIVATIONS
from ttmodels.backbone import SCALING, Features, feature_shape
from ttmodels.modes import check_modes
from ttmodels.tensor_train import TTShape


def _option(default: Any, meaning: str, choices: tuple[str, ...] | None = None, kind: type = str) -> Any:
    """A field that is an option of `ttmodels.train` too, with what --help says of it; of a `kind`, where the default
    is None."""
    return field(default=default, metadata={"help": meaning, "choices": choices, "kind": kind})


TASKS = get_args(Task)
CELLS = ("rnn", "gru", "lstm")
POOLINGS = ("last", "mean")
SCHEDULES = ("cosine", "linear", "constant", "plateau")
CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("fp32", "bf16", "fp16")
BACKBONES = ("", "efficientnet-lite0")


@dataclass(frozen=True)
class ModelConfig:
    """A ClipClassifier: what a clip is, perhaps a backbone, the TT recurrence, the classes.

    Raises:
        ValueError: modes that do not multiply to the frame or its features, an unknown cell, an option that the cell
            does not have, fewer than two labels.
    """

    labels: tuple[str, ...]
    input_modes: tuple[int, ...]
    output_modes: tuple[int, ...]
    tt_ranks: tuple[int, ...]
    """d + 1 of them, 1 at both ends."""
    task: Literal["single_label", "multi_label"] = _option(
        "single_label",
        "whether one label holds for a clip, or any number: a list then has `Eat|Kiss` for two, and nothing for none",
        TASKS,
    )
    cell: Literal["rnn", "gru", "lstm"] = _option("gru", "the recurrence", CELLS)
    num_layers: int = _option(1, "recurrences above one another")
    bidirectional: bool = _option(False, "each layer reads the clip from its end too")
    activation: str = _option("tanh", "of the new state", tuple(ACTIVATIONS))
    recurrent_activation: str = _option("sigmoid", "of the gates of a gru or lstm", tuple(ACTIVATIONS))
    reset_after: bool = _option(True, "a gru's reset gate comes after the hidden product, as torch has it, or before")
    recurrent_ranks: tuple[int, ...] = _option(
        (), "inner TT-ranks of the hidden-to-hidden matrix, one for all or each; without them it is dense"
    )
    difference: bool = _option(False, "read what changes from each frame to the next, and not the frames themselves")
    pooling: Literal["last", "mean"] = _option(
        "last", "a clip's logits: those at its last step, or the steps' mean", POOLINGS
    )
    dropout: float = _option(0.0, "share of the units dropped after each layer, in training")
    recurrent_dropout: float = _option(
        0.0, "share of the hidden units that the hidden product does not see, in training, one choice a clip"
    )
    kernel_l2: float = _option(0.0, "penalty on the squared norm of the input-to-hidden matrix, in training")
    backbone: str = _option(
        "", "a network trained on ImageNet, whose features of a frame are read in the place of its pixels", BACKBONES
    )
    backbone_features: Literal["pooled", "map"] = _option(
        "pooled", "of a backbone: the means of its last map, or the whole of it", get_args(Features)
    )
    sampling: Sampling = field(default_factory=Sampling)
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        _check_choices(self)
        shape = TTShape(self.input_modes, self.output_modes, self.tt_ranks)
        what = f"{self.sampling.width}x{self.sampling.height} RGB"
        if self.backbone:
            what = f"the {self.backbone_features} features of {what}"
        check_modes(shape.input_modes, self.input_size, f"input_modes for {what}")
        if self.backbone and self.scaling != SCALING:
            raise ValueError(f"scaling: expected that of {self.backbone}, {SCALING!r}, got {self.scaling!r}")
        if not self.backbone and self.backbone_features != "pooled":
            raise ValueError(f"backbone_features: expected a backbone beside {self.backbone_features!r}, got none")
        if self.num_layers < 1:
            raise ValueError(f"expected a num_layers of at least 1, got {self.num_layers}")
        if self.cell == "rnn" and self.recurrent_activation != "sigmoid":
            raise ValueError(f"recurrent_activation: an rnn has no gates, got {self.recurrent_activation!r}")
        if self.cell != "gru" and not self.reset_after:
            raise ValueError(f"reset_after: expected a gru where it is off, got {self.cell!r}")
        self.cell_options()  # which says what does not fit of the recurrent ranks
        _check_labels(self.labels)
        _check_shares(self, "dropout", "recurrent_dropout")
        if not 0 <= self.kernel_l2 < math.inf:
            raise ValueError(f"expected a kernel_l2 of at least 0, got {self.kernel_l2}")

    @property
    def input_size(self) -> int:
        """Values that the recurrence reads of a frame."""
        height, width = self.sampling.height, self.sampling.width
        return math.prod(feature_shape(height, width, self.backbone_features)) if self.backbone else height * width * 3

    @property
    def hidden_size(self) -> int:
        return math.prod(self.output_modes)

    def cell_options(self) -> dict[str, Any]:
        """What the recurrence's cells take of this."""
        options: dict[str, Any] = {"activation": self.activation}
        if self.recurrent_ranks:
            ranks = self.recurrent_ranks[0] if len(self.recurrent_ranks) == 1 else self.recurrent_ranks
            TTShape.make(self.output_modes, self.output_modes, ranks, argument="recurrent_ranks")
            options["recurrent_ranks"] = ranks
        if self.cell != "rnn":
            options["recurrent_activation"] = self.recurrent_activation
        if self.cell == "gru":
            options["reset_after"] = self.reset_after
        return options


@dataclass(frozen=True)
class MLPConfig:
    """An MLPClassifier: what it reads, its TT layers, the classes.

    Raises:
        ValueError: sizes that do not meet, an unknown activation, fewer than two labels.
    """

    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    """[height, width, channels] of an image, or [features]."""
    layers: tuple[TTShape, ...]
    activation: str = field(default="relu", metadata={"choices": tuple(ACTIVATIONS)})
    """Of each layer."""
    dropout: float = 0.0
    """Share of the units dropped after each layer, in training."""
    mean: tuple[float, ...] = (0.0,)
    """Taken from the input, one for all or one each channel or feature; pixels run from 0 to 1."""
    std: tuple[float, ...] = (1.0,)
    """Then divides it, alike."""

    def __post_init__(self) -> None:
        if len(self.input_shape) not in (1, 3) or min(self.input_shape) < 1:
            raise ValueError(f"input_shape: expected [height, width, channels] or [features], got {self.input_shape}")
        if not self.layers:
            raise ValueError("layers: expected at least one, got none")
        size = math.prod(self.input_shape)
        for number, layer in enumerate(self.layers):
            check_modes(layer.input_modes, size, f"input_modes of layer {number}")
            size = layer.out_features
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.input_shape[-1]):
                raise ValueError(f"{name}: expected 1 or {self.input_shape[-1]} numbers, got {getattr(self, name)}")
        if not min(self.std) > 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")
        _check_choices(self)
        _check_labels(self.labels)
        _check_shares(self, "dropout")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Rates are per step of the optimiser, AdamW."""

    epochs: int = _option(30, "times that every clip is seen")
    patience: int = _option(0, "epochs without a better one after which the run ends early; 0 for never")
    batch_size: int = _option(32, "clips a step, of all processes together")
    learning_rate: float = _option(3e-3, "largest of the schedule")
    weight_decay: float = _option(1e-4, "of AdamW")
    warmup: float = _option(0.05, "share of all steps in which the learning rate rises from 0")
    schedule: str = _option(
        "cosine",
        "the learning rate after that: half a cosine or a line to 0, constant, or lower by 0.3 at each plateau",
        SCHEDULES,
    )
    plateau_epochs: int = _option(5, "epochs without a lower validation loss that are a plateau")
    clip_norm: float = _option(1.0, "largest norm of the gradient; inf for no limit")
    precision: str = _option("fp32", "of what torch's autocast computes in training; fp16 scales the loss", PRECISIONS)
    class_weights: str = _option("none", "of clips in the loss; balanced: all classes count alike", CLASS_WEIGHTS)
    label_smoothing: float = _option(0.0, "share of what is true that is spread over all labels")
    over_time_weight: float = _option(0.0, "share of the loss that every step of time has, beside the clip's own")
    valid_fraction: float = _option(
        0.1,
        "share of the clips, class by class and in whole groups, held back to choose the best epoch; 0: the last epoch "
        "is kept",
    )
    fold: int | None = _option(None, "fold of the list that is held back as test clips", kind=int)
    mirror_horizontal: str | None = _option(
        "auto",
        "mirror every second training clip left to right: LABEL=LABEL,... change places by it, '' none; never; auto: "
        "none, where no label may name a side, else never",
    )
    mirror_vertical: str | None = _option("never", "the same, top to bottom")
    crop: float = _option(1.0, "smallest share of the frames' area that a crop of a training clip keeps")
    time_jitter: float = _option(0.0, "largest share of its time that a training clip does not show")
    gain: float = _option(0.0, "brightness of training clips varies by up to this share")
    contrast: float = _option(0.0, "their contrast by up to this")
    saturation: float = _option(0.0, "their saturation by up to this")
    erase: float = _option(0.0, "share of training clips in which a box is of one colour")
    views: int = _option(
        4, "with a backbone: versions of each training clip, as it is and changed, of which an epoch sees one"
    )
    seed: int = _option(0, "of the split, the first weights, the order and the changes of the clips")

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.patience < 0 or self.plateau_epochs < 1:
            raise ValueError(
                f"expected a patience of at least 0 and plateau_epochs of at least 1, "
                f"got {self.patience} and {self.plateau_epochs}"
            )
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"expected positive epochs and batch_size, got {self.epochs} and {self.batch_size}")
        if self.views < 1:
            raise ValueError(f"expected at least one of views, got {self.views}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"expected a positive learning_rate, got {self.learning_rate}")
        if not self.clip_norm > 0:
            raise ValueError(f"expected a positive clip_norm (inf for no limit), got {self.clip_norm}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"expected a weight_decay of at least 0, got {self.weight_decay}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"expected a warmup in [0, 1], a share of all steps, got {self.warmup}")
        if not 0 <= self.over_time_weight < 1:
            raise ValueError(f"expected an over_time_weight in [0, 1), got {self.over_time_weight}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"expected a crop in (0, 1], got {self.crop}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"expected an erase in [0, 1], got {self.erase}")
        _check_shares(self, "valid_fraction", "label_smoothing", "time_jitter", "gain", "contrast", "saturation")
        if self.seed < 0:
            raise ValueError(f"expected a seed of at least 0, got {self.seed}")


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(f"expected at least two labels that differ, got {list(labels)}")


def _check_shares(config: ModelConfig | MLPConfig | TrainConfig, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"expected a {name} in [0, 1), got {getattr(config, name)}")


def _check_choices(config: ModelConfig | MLPConfig | TrainConfig) -> None:
    for f in dataclasses.fields(config):
        choices, value = f.metadata.get("choices"), getattr(config, f.name)
        if choices and value not in choices:
            raise ValueError(f"{f.name}: expected one of {', '.join(choices)}, got {value!r}")


def to_json(config: ModelConfig | MLPConfig | TrainConfig) -> str:
    def plain(value: object) -> object:
        if isinstance(value, (Sampling, Scaling)):
            return value.model_dump()
        if isinstance(value, TTShape):
            return dataclasses.asdict(value)
        raise TypeError(f"no JSON for {type(value).__name__}")

    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return json.dumps(fields, default=plain)


def model_config_from_json(text: str) -> ModelConfig:
    values = known(ModelConfig, text)
    for name in ("labels", "input_modes", "output_modes", "tt_ranks", "recurrent_ranks"):
        if name in values:
            values[name] = tuple(values[name])
    values["sampling"] = Sampling.model_validate(values["sampling"])
    values["scaling"] = Scaling.model_validate(values["scaling"])
    return ModelConfig(**values)


def mlp_config_from_json(text: str) -> MLPConfig:
    values = known(MLPConfig, text)
    for name in ("labels", "input_shape", "mean", "std"):
        if name in values:
            values[name] = tuple(values[name])
    trains = ({name: tuple(sizes) for name, sizes in layer.items()} for layer in values["layers"])
    values["layers"] = tuple(TTShape(**train) for train in trains)
    return MLPConfig(**values)


def train_config_from_json(text: str) -> TrainConfig:
    return TrainConfig(**known(TrainConfig, text))


def known(kind: type, text: str) -> dict[str, Any]:
    """The fields of a dataclass in JSON. Those that an older file lacks keep their defaults.

    Raises:
        ValueError: no JSON object, or a field that this version does not know.
    """
    values: dict[str, Any] = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: expected fields with names, got {text:.40}")
    if unknown := set(values) - {f.name for f in dataclasses.fields(kind)}:
        raise ValueError(
            f"{kind.__name__}: expected fields of this version, got also {sorted(unknown)}; upgrade ttvideo"
        )
    return values

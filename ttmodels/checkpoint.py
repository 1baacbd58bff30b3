"""Checkpoints: one safetensors file, its JSON configuration in the header. Written atomically, read without pickle.

Tensors: `model.<parameter>`, and in a checkpoint to resume from `optimizer.<index>.<name>`. Header keys:
`ttvideo.format`, `ttvideo.network` (the class; a ClipClassifier without it), `ttvideo.model` and `ttvideo.train` (the
configurations), `ttvideo.backbone` (the SHA-256 of a backbone's weights, which are not in the file: they are in a
package that is pinned, and would make it a hundred times larger), `ttvideo.progress` (epoch, best figures, history,
data set).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttmodels import backbone
from ttmodels import config as configs
from ttmodels.atomic import in_place_of
from ttmodels.classifier import ClipClassifier
from ttmodels.commandline import plain
from ttmodels.config import MLPConfig, ModelConfig, TrainConfig
from ttmodels.mlp import MLPClassifier

FORMAT_VERSION = 1

Network = TypeVar("Network", ClipClassifier, MLPClassifier)


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    best_score: float = -1.0
    """On validation, `Predictions.score`; nan where no clips are held back for it."""
    best_loss: float = math.inf
    """On validation too; a lower one is the better of two equal scores."""
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: train_loss, learning_rate, seconds; valid_loss and valid_score where clips are held back."""
    temperature: float = 1.0
    """The logits are divided by it before they become probabilities; fitted at the end of the run."""
    data_set: str = ""
    num_clips: dict[str, int] = field(default_factory=dict)
    """Clips per split."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the scaling of the loss, of a run in fp16."""

    def note_if_best(self) -> bool:
        """Note the last epoch if it is better than all before, and say whether it is; each is, where no clips tell."""
        last = self.history[-1]
        score, loss = last.get("valid_score", math.nan), last.get("valid_loss", math.nan)
        if "valid_score" in last and (score, -loss) <= (self.best_score, -self.best_loss):
            return False
        self.best_score, self.best_loss, self.best_epoch = score, loss, self.epoch
        return True


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What every file holds, the tensors on the CPU."""

    train_config: TrainConfig
    progress: Progress
    tensors: dict[str, torch.Tensor]
    sha256: str
    path: Path
    """Where it was read."""

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the saved state back into an optimiser made with the same configuration.

        Raises:
            ValueError: the checkpoint was not made to resume from.
        """
        saved = _below(self.tensors, "optimizer.")
        if not saved:
            raise ValueError(f"{self.path}: expected the optimiser's state, found only the model: resume from `last`")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in saved.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Saved):
    """Of a ClipClassifier."""

    model_config: ModelConfig

    def model(self) -> ClipClassifier:
        """The trained classifier, in evaluation mode.

        Raises:
            ValueError: the file's tensors are not those of its configuration; names them.
        """
        return _filled(ClipClassifier(self.model_config), self)


@dataclass(frozen=True, kw_only=True)
class MLPCheckpoint(Saved):
    """Of an MLPClassifier."""

    model_config: MLPConfig

    def model(self) -> MLPClassifier:
        """The trained classifier, in evaluation mode.

        Raises:
            ValueError: the file's tensors are not those of its configuration; names them.
        """
        return _filled(MLPClassifier(self.model_config), self)


def save(
    path: Path,
    model: ClipClassifier | MLPClassifier,
    train_config: TrainConfig,
    progress: Progress,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write `path`; with an optimiser, so that training can go on from it. An interruption leaves the old file.

    Raises:
        OSError: a full disk, a folder without rights.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    header = {
        "ttvideo.format": str(FORMAT_VERSION),
        "ttvideo.network": type(model).__name__,
        "ttvideo.model": configs.to_json(model.config),
        "ttvideo.train": configs.to_json(train_config),
        "ttvideo.progress": json.dumps(progress.__dict__),
    }
    if isinstance(model, ClipClassifier) and model.backbone is not None:
        header["ttvideo.backbone"] = backbone.SHA256
    try:
        with in_place_of(path) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, header)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def load(path: Path) -> Checkpoint:
    """Read the checkpoint of a ClipClassifier.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of ours, broken, of a newer format, or of another network.
    """
    saved = load_any(path)
    if not isinstance(saved, Checkpoint):
        raise ValueError(f"{path}: expected the checkpoint of a ClipClassifier, got that of an MLPClassifier")
    return saved


def load_any(path: Path) -> Checkpoint | MLPCheckpoint:
    """Read a checkpoint of either network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of ours, broken, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint (a .safetensors file), found nothing at {path}")
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file, got something else or a broken one: {error}") from error
    found = header.get("ttvideo.format")
    if found is None:
        raise ValueError(f"{path}: safetensors, but not a checkpoint of ttvideo: its header has {sorted(header)}")
    if not found.isdecimal() or int(found) > FORMAT_VERSION:
        raise ValueError(f"{path}: checkpoint format {found}, this code reads up to {FORMAT_VERSION}; upgrade ttvideo")
    if (weights := header.get("ttvideo.backbone", backbone.SHA256)) != backbone.SHA256:
        raise ValueError(f"{path}: trained behind a backbone of SHA-256 {weights}, this code has {backbone.SHA256}")
    network = header.get("ttvideo.network", ClipClassifier.__name__)
    try:
        shared: dict[str, Any] = {
            "train_config": configs.train_config_from_json(header["ttvideo.train"]),
            "progress": _progress(header["ttvideo.progress"]),
            "tensors": tensors,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "path": path,
        }
        if network == MLPClassifier.__name__:
            return MLPCheckpoint(model_config=configs.mlp_config_from_json(header["ttvideo.model"]), **shared)
        if network == ClipClassifier.__name__:
            return Checkpoint(model_config=configs.model_config_from_json(header["ttvideo.model"]), **shared)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its header is broken: expected JSON, got {error.doc!r:.40}") from error
    except KeyError as error:
        raise ValueError(f"{path}: its header is not complete: expected {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its header does not fit: {plain(error)}") from error
    raise ValueError(f"{path}: expected a ClipClassifier or an MLPClassifier, got {network}; upgrade ttvideo")


def _progress(text: str) -> Progress:
    scores = text.replace('_accuracy":', '_score":')  # in files by older versions
    return Progress(**configs.known(Progress, scores))


def _filled(model: Network, saved: Saved) -> Network:
    """The model with the file's tensors, in evaluation mode."""
    given, expected = _below(saved.tensors, "model."), model.state_dict()
    faults = [f"no {name}" for name in expected.keys() - given]
    faults += [f"also {name}" for name in given.keys() - expected.keys()]
    faults += [
        f"{name} of shape {list(given[name].shape)} in the place of {list(expected[name].shape)}"
        for name in expected.keys() & given
        if given[name].shape != expected[name].shape
    ]
    if faults:
        raise ValueError(f"{saved.path}: expected the tensors of its configuration, got {', '.join(sorted(faults))}")
    model.load_state_dict(given)
    return model.eval()


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

"""Checkpoints: one safetensors file, its JSON configuration in the header. Written atomically, read without pickle.

Tensors: `model.<parameter>`, and in a checkpoint to resume from `optimizer.<index>.<name>`. Header keys:
`ttvideo.format`, `ttvideo.model` and `ttvideo.train` (the configurations), `ttvideo.progress` (epoch, best figures,
history, data set).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttmodels import config as configs
from ttmodels.atomic import in_place_of
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig

FORMAT_VERSION = 1


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    """On validation, as the accuracy; a lower one is the better of two equal accuracies."""
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: train_loss, valid_loss, valid_accuracy, seconds."""
    data_set: str = ""
    num_clips: dict[str, int] = field(default_factory=dict)
    """Clips per split."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, the tensors on the CPU."""

    model_config: ModelConfig
    train_config: TrainConfig
    progress: Progress
    tensors: dict[str, torch.Tensor]
    sha256: str

    def model(self) -> ClipClassifier:
        """The trained classifier, in evaluation mode."""
        model = ClipClassifier(self.model_config)
        model.load_state_dict(_below(self.tensors, "model."))
        return model.eval()

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the saved state back into an optimiser made with the same configuration.

        Raises:
            ValueError: the checkpoint was not made to resume from.
        """
        saved = _below(self.tensors, "optimizer.")
        if not saved:
            raise ValueError("expected the optimiser's state, found only the model: resume from `last`")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in saved.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save(
    path: Path,
    model: ClipClassifier,
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
        "ttvideo.model": configs.to_json(model.config),
        "ttvideo.train": configs.to_json(train_config),
        "ttvideo.progress": json.dumps(progress.__dict__),
    }
    try:
        with in_place_of(path) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, header)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

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
    if not found.isdigit() or int(found) > FORMAT_VERSION:
        raise ValueError(f"{path}: checkpoint format {found}, this code reads up to {FORMAT_VERSION}; upgrade ttvideo")
    try:
        return Checkpoint(
            configs.model_config_from_json(header["ttvideo.model"]),
            configs.train_config_from_json(header["ttvideo.train"]),
            Progress(**json.loads(header["ttvideo.progress"])),
            tensors,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its header is not complete: {error}") from error


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

"""Several processes that train one model, as torchrun starts them. One process alone is a team of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(days=7)
"""How long the others wait for the first, which may have many clips to decode."""

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes, as one of them sees them."""

    device: str
    """That of this process, such as cpu or cuda:1."""
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decodes to the cache, writes, prints and evaluates."""
        return self.rank == 0

    def share(self, batch: np.ndarray) -> np.ndarray:
        """This process' part of all processes' batch; it may be empty."""
        return batch[self.rank :: self.size]

    def network(self, model: nn.Module) -> nn.Module:
        """The model with the first process' weights, whose gradients become the processes' mean. Its buffers stay equal
        of themselves."""
        return DistributedDataParallel(model, broadcast_buffers=False) if self.size > 1 else model

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all of them; an error of it is one of all."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        if self.first:
            try:
                made = [make()]
            except (ValueError, OSError) as error:
                made = [error]
        distributed.broadcast_object_list(made, device=torch.device(self.device))
        if isinstance(made[0], Exception):
            raise made[0]
        result: T = made[0]
        return result

    def sum(self, value: float) -> float:
        """That of all processes' values."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total)


@contextmanager
def joined(device: str | None) -> Iterator[Team]:
    """The team that the environment names (torchrun's RANK, LOCAL_RANK and WORLD_SIZE); in all processes but the first
    nothing is printed.

    Args:
        device: of every process; cuda, which is the default where there is one, gives each one of its own.

    Raises:
        ValueError: a device that is not there, or fewer than processes.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if size == 1:
        yield Team(device)
        return
    if device != "cpu":
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if device != "cuda" or devices < here:
            raise ValueError(
                f"--device: expected cpu, or cuda with a device for each of {here} processes, got {device} of {devices}"
            )
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        with ExitStack() as stack:
            if rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield Team(device, rank, size)
    finally:
        distributed.destroy_process_group()

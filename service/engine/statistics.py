"""What a model has done since it was first loaded."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Spent:
    """How often something was done, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self.count += times
        self.seconds += seconds


@dataclass
class RunningMean:
    """Of the latest values, each of which weighs a tenth when it comes.

    Args:
        value: what is taken for it before the first.
    """

    value: float = 0.0
    known: bool = False

    def add(self, value: float) -> None:
        self.value = self.value + 0.1 * (value - self.value) if self.known else value
        self.known = True


@dataclass
class Execution:
    """Runs of one batch size."""

    gather: Spent = field(default_factory=Spent)
    """Putting the clips together."""
    run: Spent = field(default_factory=Spent)


@dataclass
class Statistics:
    """Of one model and version. A reload goes on counting."""

    num_inferences: int = 0
    """Clips, or rows of a batch."""
    num_executions: int = 0
    """Runs of the model."""
    last_inference_ms: int = 0
    """Since the epoch; 0 before the first."""
    success: Spent = field(default_factory=Spent)
    """Requests, from the moment in which their tensors are there to the answer."""
    fail: Spent = field(default_factory=Spent)
    queue: Spent = field(default_factory=Spent)
    gather: Spent = field(default_factory=Spent)
    run: Spent = field(default_factory=Spent)
    by_batch: defaultdict[int, Execution] = field(default_factory=lambda: defaultdict(Execution))

    def ran(self, batch: int, gather_s: float, run_s: float) -> None:
        """The model ran once."""
        self.num_executions += 1
        self.num_inferences += batch
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.by_batch[batch].gather.add(gather_s)
        self.by_batch[batch].run.add(run_s)

    def answered(self, total_s: float, queue_s: float, gather_s: float, run_s: float) -> None:
        """A request got its answer."""
        self.success.add(total_s)
        self.queue.add(queue_s)
        self.gather.add(gather_s)
        self.run.add(run_s)

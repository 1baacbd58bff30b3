"""Prove an exported file equal to its model: ONNX Runtime against torch, at sizes that the export never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from service.manifest import Parity
from ttmodels.classifier import ClipClassifier

TOLERANCE = 1e-3
"""Largest difference of a logit, for float32. Logits are of the order of 10 and a gate sums 57,600 pixels in another
order than torch: 1e-4 of a logit is what rounding leaves."""

SIZES = ((1, 1), (1, 16), (2, 3), (3, 7), (5, 16), (4, 33))
"""[batch, time] of the comparisons; clips of a batch differ in length."""


class ParityError(ValueError):
    """The file does not compute what the model does."""


@torch.inference_mode()
def verify(model: ClipClassifier, onnx_bytes: bytes, *, tolerance: float = TOLERANCE, source: Path | str) -> Parity:
    """Largest absolute difference of logits over SIZES, on noise and on smooth frames.

    Raises:
        ParityError: a difference above `tolerance`, a wrong shape, or something that is not a number.
    """
    sampling = model.config.sampling
    model.eval()
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch, time in SIZES:
        frames = rng.integers(0, 256, (batch, time, sampling.height, sampling.width, 3), np.uint8)
        frames[::2] = frames[::2].mean(axis=(2, 3), keepdims=True).astype(np.uint8)
        lengths = rng.integers(1, time + 1, batch).astype(np.int32)
        lengths[0] = time
        got = session.run(["logits", "logits_over_time"], {"frames": frames, "lengths": lengths})
        want = model(torch.from_numpy(frames), torch.from_numpy(lengths))
        for name, mine, theirs in zip(want._fields, map(np.asarray, got), want, strict=True):
            if mine.shape != tuple(theirs.shape):
                raise ParityError(f"{source}: {name} at batch {batch}, time {time}: expected the shape "
                                  f"{list(theirs.shape)}, got {list(mine.shape)}")  # fmt: skip
            error = float(np.abs(mine - theirs.numpy()).max())
            worst = max(worst, error)
            if not error <= tolerance:  # also where it is not a number
                raise ParityError(f"{source}: {name} at batch {batch}, time {time} differs from torch by {error:.3g}, "
                                  f"expected at most {tolerance:g}")  # fmt: skip
    return Parity(max_abs_error=worst, tolerance=tolerance, sizes=SIZES)

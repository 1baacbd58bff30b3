"""Prove an exported file equal to its model: ONNX Runtime against torch, at sizes that the export never saw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from exporters.quantize import Precision
from exporters.timing import open_session
from service.manifest import Parity, State
from ttmodels.classifier import ClipClassifier

TOLERANCE = 1e-3
"""Largest difference of a logit, for float32, times the largest logit where that is above 1. A gate sums 57,600 pixels
in another order than torch: 1e-4 of a logit is what rounding leaves."""

TOLERANCES: dict[Precision, float] = {"fp32": TOLERANCE, "fp16": 20 * TOLERANCE, "int8": TOLERANCE}
"""For the model whose weights are rounded alike: of int8 nothing else is rounded, of fp16 the values are."""

SIZES = (
    *((1, 1), (1, 2), (1, 3), (1, 7), (1, 16), (1, 17), (1, 40), (2, 1), (2, 3), (2, 5)),
    *((2, 16), (3, 2), (3, 7), (4, 4), (4, 19), (5, 1), (5, 6), (7, 3), (8, 8), (9, 2)),
)
"""[batch, time] of the comparisons; clips of a batch differ in length."""

THREADS = 1
"""Of a session that makes many small runs, beside torch's own threads."""

NAMES = ("logits", "logits_over_time")


class ParityError(ValueError):
    """The file does not compute what the model does."""


@torch.inference_mode()
def verify(
    model: ClipClassifier,
    onnx_bytes: bytes,
    *,
    tolerance: float = TOLERANCE,
    source: Path | str,
    carried: Sequence[State] = (),
) -> Parity:
    """Largest absolute difference of logits over SIZES, on noise and on smooth frames.

    model: with the file's own weights, see `quantize.rounded`.
    tolerance: times the largest logit of a comparison where that is above 1.
    carried: states of a streaming file, which gets each clip in pieces.

    Raises:
        ParityError: a difference above that, a wrong shape, or something that is not a number.
    """
    sampling = model.config.sampling
    model.eval()
    session = open_session(onnx_bytes, THREADS)
    rng = np.random.default_rng(0)
    worst = largest = 0.0
    for batch, time in SIZES:
        frames = rng.integers(0, 256, (batch, time, sampling.height, sampling.width, 3), np.uint8)
        frames[::2] = frames[::2].mean(axis=(2, 3), keepdims=True).astype(np.uint8)
        lengths = rng.integers(1, time + 1, batch).astype(np.int32)
        lengths[0] = time
        if carried:
            got = run_in_pieces(session, carried, frames, lengths, cuts=rng.integers(0, time + 1, (2, batch)))
        else:
            got = [np.asarray(out) for out in session.run(NAMES, {"frames": frames, "lengths": lengths})]
        want = model(torch.from_numpy(frames), torch.from_numpy(lengths))
        for name, mine, theirs in zip(NAMES, got, want, strict=True):
            where = f"{source}: {name} at batch {batch}, time {time}"
            worst = max(worst, difference(mine, theirs.numpy(), tolerance, where))
            largest = max(largest, float(theirs.abs().max()))
    return Parity(max_abs_error=worst, largest_logit=largest, tolerance=tolerance, sizes=SIZES)


def difference(mine: np.ndarray, theirs: np.ndarray, tolerance: float, where: str) -> float:
    """The largest, absolute.

    Raises:
        ParityError: another shape, more than `tolerance` times the largest of `theirs` where that is above 1, or
            something that is not a number.
    """
    if mine.shape != theirs.shape:
        raise ParityError(f"{where}: expected the shape {list(theirs.shape)}, got {list(mine.shape)}")
    with np.errstate(invalid="ignore"):  # of two infinities
        error, largest = float(np.abs(mine - theirs).max()), float(np.abs(theirs).max())
    bound = tolerance * max(1.0, largest)
    if not error <= bound or not math.isfinite(bound):  # also where they are not numbers
        raise ParityError(
            f"{where} differs from torch by {error:.3g} with values up to {largest:.3g}, expected at most {bound:.3g} "
            f"(--tolerance {tolerance:g})"
        )
    return error


def run_in_pieces(
    session: onnxruntime.InferenceSession,
    carried: Sequence[State],
    frames: np.ndarray,
    lengths: np.ndarray,
    cuts: np.ndarray,
) -> list[np.ndarray]:
    """What a streaming file says of clips that come in pieces: logits [batch, classes] after the last one, and those
    over time [batch, time, classes], which past a clip's end repeat its last.

    Shape: frames uint8 [batch, time, height, width, 3], lengths int32 [batch], cuts [pieces - 1, batch]: the steps of
    each clip between which its pieces lie, in any order; a piece may be empty.
    """
    batch, time = frames.shape[:2]
    ends = np.vstack([np.zeros_like(lengths), np.sort(np.minimum(cuts, lengths), axis=0), lengths])
    state = {one.input: np.zeros((batch, *one.shape), one.dtype) for one in carried}
    logits, over_time = np.empty(0), np.empty(0)
    for first, end in itertools.pairwise(ends):
        counts = (end - first).astype(np.int32)
        piece = np.zeros((batch, max(1, counts.max()), *frames.shape[2:]), np.uint8)
        for row, count in enumerate(counts):
            piece[row, :count] = frames[row, first[row] : end[row]]
        outputs = session.run([*NAMES, *(one.output for one in carried)], {"frames": piece, "lengths": counts, **state})
        logits, steps, *new = map(np.asarray, outputs)
        state = {one.input: value for one, value in zip(carried, new, strict=True)}
        over_time = over_time if over_time.size else np.zeros((batch, time, steps.shape[-1]), steps.dtype)
        for row, count in enumerate(counts):
            over_time[row, first[row] : end[row]] = steps[row, :count]
    for row, length in enumerate(lengths):
        over_time[row, length:] = over_time[row, length - 1]
    return [logits, over_time]

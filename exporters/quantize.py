"""The train that reads pixels, in the numbers that a graph computes with.

A graph computes contract((pixel - zero) * unit, matrices) * scale + bias. Scaling and normalising of pixels,
scale_c pixel + shift_c by channel, are folded into the matrices and the bias. The bias is made from the matrices as
they are after rounding, so that a frame of the mean colour projects to the layer's own bias at every precision.

fp32: as they are.

fp16: pixels come centred, as (pixel - 128) / 128, which float16 holds exactly. Powers of two are moved between the
matrices and the scale so that no sum can pass LARGEST, and the gates, the recurrence and the head are float32.

int8: the first matrix meets the raw pixels as integers, so that neither they nor their sums are rounded.
- A weight has WEIGHT_BITS bits, -63 to 63: processors without VNNI add two products of a pixel and a weight in 16 bits,
  and 2 * 255 * 64 is the most that fits. A file gives the same sums everywhere, for one bit.
- Each column (a rank beside an output mode) has a scale of its own, a product of one a rank, which goes into the next
  matrix, and one an output mode, which multiplies the result: no operation on the large value in between.
- Rounding errors are carried to the next pixel of the channel, so that the error of a sum over neighbouring pixels
  stays within half a step. Frames are smooth: on clips of moving digits this takes four fifths of the error of a
  probability away, as two more bits would. It is noise shaping as in audio converters (Spang and Schultheiss,
  "Reduction of quantizing noise by use of feedback", 1962).
- The factors after it stay float32. With the value between them in 8 bits too, the train takes as long as before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan, Route, contract, merge
from ttmodels.linear import TTLinear
from ttmodels.tensor_train import TTShape

Precision = Literal["fp32", "fp16", "int8"]

WEIGHT_BITS = 7
WEIGHT_MAX = 2 ** (WEIGHT_BITS - 1) - 1
LARGEST_SUM = (2**31 - 1) // (255 * WEIGHT_MAX)
"""Products of a pixel and a weight that 32 bits hold the sum of."""
LARGEST = 2.0**10
"""Bound on a float16 value of the graph, by the sums of absolute weights; 64 times below where float16 ends."""


@dataclass(frozen=True)
class PixelTrain:
    """Weights of a graph's projection of pixels; see the module."""

    route: Route
    matrices: list[Tensor]
    """In the order of the route's steps; the first is int8 at precision int8."""
    zero: int
    unit: float
    channel_scale: Tensor | None
    """[channels], multiplies the pixels where the last factor cuts through the channels and cannot hold it."""
    scale: Tensor | None
    """[M], multiplies the result."""
    bias: Tensor
    """[M]."""
    layer: TTLinear
    """The same function of normalised pixels, as a layer with a core for each factor."""


def fits(plan: Plan, shape: TTShape, pixel_scale: Tensor, precision: Precision) -> bool:
    """Whether a plan can be exported: at int8 its first product has the raw pixels on the left, as MatMulInteger wants
    them, a factor that holds the channels' scales, and a sum that 32 bits hold."""
    if precision != "int8":
        return True
    _, n, _, _ = plan.factor_shapes(shape)[-1]
    return (
        plan.direction == "right_to_left"
        and (n % len(pixel_scale) == 0 or bool((pixel_scale == pixel_scale[0]).all()))
        and n <= LARGEST_SUM
    )


def pixel_train(
    layer: TTLinear, plan: Plan, pixel_scale: Tensor, pixel_shift: Tensor, precision: Precision
) -> PixelTrain:
    """The weights of `layer` for pixels that mean pixel_scale * pixel + pixel_shift by channel.

    Raises:
        ValueError: a plan that does not fit the precision.
    """
    if not fits(plan, layer.shape, pixel_scale, precision):
        raise ValueError(f"expected a plan that {precision} can take, got {plan.groups} {plan.direction}")
    route = Route.of(plan, layer.shape)
    to_scale, shift = pixel_scale.detach().double(), pixel_shift.detach().double()
    zero, unit = (128, 1 / 128) if precision == "fp16" else (0, 1.0)
    factors = merge([core.detach().double() for core in layer.cores], plan)
    n, channels = factors[-1].shape[1], len(to_scale)
    channel_scale = None
    if n % channels == 0:
        folded = to_scale.repeat(n // channels)
    else:
        folded = to_scale.max().repeat(n)
        if bool((to_scale != to_scale[0]).any()):
            channel_scale = to_scale / to_scale.max()
    folded = (folded / unit)[:, None, None]
    factors[-1] = factors[-1] * folded
    matrices = route.laid_out(factors)
    ranks, _, modes, _ = factors[-1].shape
    last_scale = torch.ones(modes, dtype=torch.float64)
    if precision == "int8":
        matrices, last_scale = _to_int8(matrices, ranks, channels if n % channels == 0 else 1)
    elif precision == "fp16":
        matrices, gain = _to_half(matrices, route)
        last_scale = last_scale / gain
    else:
        matrices = [matrix.float() for matrix in matrices]

    mean = unit * (zero + shift / to_scale) * (1 if channel_scale is None else channel_scale)
    exact = [matrix.double() for matrix in matrices]
    scale = last_scale.repeat(layer.out_features // len(last_scale))
    frame = mean.repeat(layer.in_features // channels)
    value = contract(frame, exact, route.steps, matmul=torch.matmul, reshape=torch.reshape)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()

    rounded = _factors(route, exact)
    rounded[-1] = rounded[-1] / folded * last_scale[:, None]
    return PixelTrain(
        route=route,
        matrices=matrices,
        zero=zero,
        unit=unit,
        channel_scale=None if channel_scale is None else channel_scale.float(),
        scale=None if precision == "fp32" else scale.float(),
        bias=(bias + scale * value.reshape(-1)).float(),
        layer=TTLinear.from_cores([factor.float() for factor in rounded], bias.float()),
    )


def rounded(model: ClipClassifier, plan: Plan, precision: Precision) -> ClipClassifier:
    """A copy whose trains that read pixels have the weights of the graph: what the graph is to be compared with."""
    copied = copy.deepcopy(model)
    for cell in copied.cells[: copied.rnn.num_directions]:
        train = pixel_train(cell.projection, plan, model.pixel_scale, model.pixel_shift, precision)
        cell.projection = train.layer
    return copied.eval()


def _to_int8(matrices: Sequence[Tensor], ranks: int, channels: int) -> tuple[list[Tensor], Tensor]:
    """The first matrix [N, r M] in int8, its scales by rank in the next one, and its scales by output mode [M]."""
    first = matrices[0]
    columns = first.abs().amax(0).reshape(ranks, -1) / (WEIGHT_MAX - 1)  # a carried error may add a step
    by_rank = columns.amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    by_mode = (columns / by_rank[:, None]).amax(0)
    by_mode[by_mode == 0] = 1
    sums = (first / (by_rank[:, None] * by_mode).reshape(-1)).reshape(-1, channels, first.shape[1]).cumsum(0).round()
    whole = sums.diff(dim=0, prepend=torch.zeros_like(sums[:1])).reshape(first.shape).to(torch.int8)
    if len(matrices) == 1:
        return [whole], by_rank * by_mode
    following = matrices[1] * by_rank.repeat(matrices[1].shape[1] // ranks)
    return [whole, following.float(), *(matrix.float() for matrix in matrices[2:])], by_mode


def _to_half(matrices: Sequence[Tensor], route: Route) -> tuple[list[Tensor], float]:
    """The matrices in float16, each times a power of two so that values of at most 1 stay below LARGEST; the product
    of these powers."""
    halves, bound, gains = [], 1.0, 1.0
    for matrix, step in zip(matrices, route.steps, strict=True):
        summed = matrix.abs().sum(0 if step.side == "right" else 1).max().item()
        gain = 2.0 ** math.floor(math.log2(LARGEST / (bound * summed))) if summed else 1.0
        halves.append((matrix * gain).half())
        bound, gains = bound * summed * gain, gains * gain
    return halves, gains


def _factors(route: Route, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Merged factors, from the left, of the steps' matrices: the inverse of `Route.laid_out`."""
    shapes = route.plan.factor_shapes(route.shape)
    factors = list(matrices)
    for matrix, step in zip(matrices, route.steps, strict=True):
        laid_out = matrix.reshape([shapes[step.factor][axis] for axis in step.axes])
        factors[step.factor] = laid_out.permute([step.axes.index(axis) for axis in range(4)])
    return factors

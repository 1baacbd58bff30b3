"""The MatMuls of a contraction as one node of autograd, in the fastest form that torch has for each.

What is kept for the backward pass is x, the merged matrices and the small values between steps: nothing else is needed,
since every gradient is again a product of these. Merging stays in plain autograd, over factors that are small.

Legend: P products side by side, k the side that is summed over, q the side of a value that stays.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# oneDNN's float32 MatMul, which torch itself calls only from compiled graphs: on CPUs that are not Intel's it is more
# than twice as fast as MKL's, and as fast on others.
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
ONEDNN_LEAST = 1 << 20
"""Multiplications below which starting oneDNN costs more than it gains."""
FOLD_BELOW = 16
"""Values with a shorter last side are turned and multiplied at once; a batch of small products would be slower."""

FORWARD_BLOCK, BACKWARD_BLOCK = 1 << 20, 3 << 16
"""Values between two steps of a block of rows, so that they are met again in the cache: 4 MiB and 768 KiB of float32.
The backward pass has several at once, and smaller ones."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] @ b [k, n], outside autograd. a had better be contiguous; b is read as it lies."""
    if _linear is None or a.dtype != torch.float32 or a.device.type != "cpu" or a.numel() * b.shape[1] < ONEDNN_LEAST:
        return a @ b
    result: Tensor = _linear(a, b.T, None, "none", [], "")
    return result


def add_product(total: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """total [m, n] + a [m, k] @ b [k, n], outside autograd; `out` may be `total`."""
    if a.numel() * b.shape[1] < 4 * ONEDNN_LEAST:
        return torch.addmm(total, a, b, out=out)
    return torch.add(total, product(a, b), out=out)


def _from_left(matrix: Tensor, value: Tensor) -> Tensor:
    """matrix [m, k] @ value [P, k, q] -> [P, m, q]."""
    num, k, q = value.shape
    if q >= FOLD_BELOW or num == 1:
        return torch.bmm(matrix.expand(num, *matrix.shape), value)
    return product(value.mT.reshape(num * q, k), matrix.T).reshape(num, q, -1).mT


def _matrix_gradient(d_result: Tensor, value: Tensor, side: str) -> Tensor:
    """The gradient of a matrix that `value` [P, k(, q)] met from `side`, from that of the result [P, m(, q)]."""
    if side == "right":
        return product(d_result.T.contiguous(), value).T
    return product(d_result.transpose(0, 1).reshape(d_result.shape[1], -1), value.mT.reshape(-1, value.shape[1]))


def _value_gradient(d_result: Tensor, matrix: Tensor, side: str) -> Tensor:
    """The gradient of a value that met `matrix` from `side`."""
    return product(d_result, matrix.T) if side == "right" else _from_left(matrix.T, d_result)


def _rows_in(block: int, row_size: int, sides: Sequence[str], matrices: Sequence[Tensor]) -> int:
    """How many rows have `block` values between two steps, at their widest; a GPU takes all at once."""
    if matrices[0].is_cuda:
        return sys.maxsize
    sizes = [row_size]
    for side, matrix in zip(sides, matrices, strict=True):
        inner, outer = matrix.shape if side == "right" else matrix.shape[::-1]
        sizes.append(sizes[-1] // inner * outer)
    return max(1, block // max(sizes[1:]))


def _rows(value: Tensor, start: int, count: int, num_rows: int) -> Tensor:
    """The part of a value that belongs to `count` of all rows; they lie behind one another along the first axis."""
    each = len(value) // num_rows
    return value[start * each : (start + count) * each]


class Chain(torch.autograd.Function):
    """Value after value by matrix after matrix: Chain.apply(x [..., N], views, sides, *matrices) -> [..., M].

    Where nothing is kept, and in the backward pass, it goes block of rows by block of rows, so that what is made
    between two steps stays small and in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, views: tuple[tuple[int, ...], ...], sides: tuple[str, ...], *matrices: Tensor
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        ctx.sides, ctx.x_shape = sides, x.shape
        ctx.rows = _rows_in(BACKWARD_BLOCK, x.shape[-1], sides, matrices)
        rows = x.reshape(-1, x.shape[-1])
        values, results = [], []
        for block in rows.split(len(rows) if keep else _rows_in(FORWARD_BLOCK, x.shape[-1], sides, matrices)):
            value = block
            for view, side, matrix in zip(views, sides, matrices, strict=True):
                value = value.reshape(view)
                if keep:
                    values.append(value)
                value = product(value, matrix) if side == "right" else _from_left(matrix, value)
            results.append(value.reshape(len(block), -1))
        ctx.save_for_backward(*values, *matrices)
        return (results[0] if len(results) == 1 else torch.cat(results)).reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        count = len(ctx.sides)
        values, matrices = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        d_x = torch.empty_like(values[0]) if ctx.needs_input_grad[0] else None
        num_rows = ctx.x_shape[:-1].numel()
        rows = gradient.reshape(num_rows, -1)
        sums: list[Tensor | None] = [None] * count
        for start in range(0, num_rows, ctx.rows):
            d_value = rows[start : start + ctx.rows]
            for index in reversed(range(count)):
                value, matrix, side = _rows(values[index], start, ctx.rows, num_rows), matrices[index], ctx.sides[index]
                d_value = d_value.reshape(len(value), -1, *value.shape[2:])
                part, total = _matrix_gradient(d_value, value, side), sums[index]
                sums[index] = part if total is None else total.add_(part)
                if index:
                    d_value = _value_gradient(d_value, matrix, side)
                elif d_x is not None:
                    _rows(d_x, start, ctx.rows, num_rows).copy_(_value_gradient(d_value, matrix, side))
        return None if d_x is None else d_x.reshape(ctx.x_shape), None, None, *sums


def plain_autograd(tensor: Tensor) -> bool:
    """Whether only autograd's own nodes will do: while compiling, exporting, transforming or under autocast."""
    return torch.compiler.is_compiling() or autocast_on(tensor) or torch._C._are_functorch_transforms_active()


def autocast_on(tensor: Tensor) -> bool:
    """Whether products with this tensor are cast to a lower precision."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A block in which they are not."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_on(tensor) else contextlib.nullcontext()

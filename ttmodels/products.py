"""The MatMuls of a contraction as one node of autograd, in the fastest form that torch has for each.

What is kept for the backward pass is x, the merged matrices and the small values between steps: nothing else is needed,
since every gradient is again a product of these. Merging stays in plain autograd, over factors that are small.

Legend: P products side by side, k the side that is summed over, q the side of a value that stays.
"""

from __future__ import annotations

import contextlib
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

BLOCK = 1 << 18
"""Values between two steps of a block of rows in the backward pass: 1 MiB of float32, as a core's second cache."""


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


def _rows(value: Tensor, start: int, count: int, num_rows: int) -> Tensor:
    """The part of a value that belongs to `count` of all rows; they lie behind one another along the first axis."""
    each = len(value) // num_rows
    return value[start * each : (start + count) * each]


class Chain(torch.autograd.Function):
    """Value after value by matrix after matrix: Chain.apply(x, views, sides, *matrices)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, views: tuple[tuple[int, ...], ...], sides: tuple[str, ...], *matrices: Tensor
    ) -> Tensor:
        values = []
        value = x
        for view, side, matrix in zip(views, sides, matrices, strict=True):
            value = value.reshape(view)
            values.append(value)
            value = product(value, matrix) if side == "right" else _from_left(matrix, value)
        ctx.sides, ctx.x_shape = sides, x.shape
        ctx.save_for_backward(*values, *matrices)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Block of rows by block of rows, so that what is made on the way stays small and in the cache."""
        count = len(ctx.sides)
        values, matrices = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        d_x = torch.empty_like(values[0]) if ctx.needs_input_grad[0] else None
        num_rows = ctx.x_shape[:-1].numel()
        block = max(1, BLOCK * num_rows // max(value.numel() for value in (gradient, *values[1:])))
        sums: list[Tensor | None] = [None] * count
        for start in range(0, num_rows, block):
            d_value = _rows(gradient, start, block, num_rows)
            for index in reversed(range(count)):
                value, matrix, side = _rows(values[index], start, block, num_rows), matrices[index], ctx.sides[index]
                d_value = d_value.reshape(len(value), -1, *value.shape[2:])
                part, total = _matrix_gradient(d_value, value, side), sums[index]
                sums[index] = part if total is None else total.add_(part)
                if index:
                    d_value = _value_gradient(d_value, matrix, side)
                elif d_x is not None:
                    _rows(d_x, start, block, num_rows).copy_(_value_gradient(d_value, matrix, side))
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

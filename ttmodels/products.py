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

BLOCK = 1 << 20
"""Values of a block in which a matrix's gradient is summed."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] @ b [k, n], outside autograd. a had better be contiguous; b is read as it lies."""
    if _linear is None or a.dtype != torch.float32 or a.device.type != "cpu" or a.numel() * b.shape[1] < ONEDNN_LEAST:
        return a @ b
    result: Tensor = _linear(a, b.T, None, "none", [], "")
    return result


def _from_left(matrix: Tensor, value: Tensor) -> Tensor:
    """matrix [m, k] @ value [P, k, q] -> [P, m, q]."""
    num, k, q = value.shape
    if q >= FOLD_BELOW or num == 1:
        return torch.bmm(matrix.expand(num, *matrix.shape), value)
    return product(value.mT.reshape(num * q, k), matrix.T).reshape(num, q, -1).mT


def _matrix_gradient(d_result: Tensor, value: Tensor) -> Tensor:
    """The gradient of `matrix` in `matrix @ value`: the sum over P of d_result [P, m, q] @ value.mT [P, q, k], [m, k].

    Block by block, so that what has to be turned for it stays small and in the cache.
    """
    num = max(1, BLOCK // (value.shape[1] * value.shape[2]))
    total: Tensor | None = None
    for d, v in zip(d_result.split(num), value.split(num), strict=True):
        part = product(d.transpose(0, 1).reshape(d.shape[1], -1), v.mT.reshape(-1, v.shape[1]))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


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
        count = len(ctx.sides)
        values, matrices = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gradients: list[Tensor] = []
        d_value: Tensor | None = gradient
        for index in reversed(range(count)):
            assert d_value is not None
            value, matrix = values[index], matrices[index]
            wanted = index > 0 or ctx.needs_input_grad[0]
            if ctx.sides[index] == "right":
                d_value = d_value.reshape(-1, matrix.shape[1])
                gradients.append(_matrix_gradient(d_value[..., None], value[..., None]).T)
                d_value = product(d_value, matrix.T) if wanted else None
            else:
                d_value = d_value.reshape(value.shape[0], matrix.shape[0], value.shape[2])
                gradients.append(_matrix_gradient(d_value, value))
                d_value = _from_left(matrix.T, d_value) if wanted else None
        d_x = None if d_value is None else d_value.reshape(ctx.x_shape)
        return d_x, None, None, *reversed(gradients)


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

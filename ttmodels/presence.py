"""Which steps of padded sequences are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Presence:
    """mask bool [batch, time], True where a step is there; lengths [batch] where all steps that are not come last."""

    mask: Tensor
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, lengths: Tensor | Sequence[int] | None, mask: Tensor | None) -> Self | None:
        """Of x [batch, time, ...], from a caller's arguments; None where every step is there.

        Raises:
            ValueError: both of them, or one that does not fit x; names it.
        """
        batch, time = x.shape[:2]
        if lengths is not None and mask is not None:
            raise ValueError("lengths, mask: expected one of them, got both")
        if lengths is not None:
            counts = torch.as_tensor(lengths, device=x.device)
            if counts.shape != (batch,):
                raise ValueError(f"lengths: expected shape [{batch}], got {list(counts.shape)}")
            if counts.is_floating_point():
                raise ValueError(f"lengths: expected integers, got {counts.dtype}")
            if not torch.compiler.is_compiling() and batch and not 0 <= int(counts.min()) <= int(counts.max()) <= time:
                raise ValueError(
                    f"lengths: expected 0 to {time}, the time axis, got {int(counts.min())} to {int(counts.max())}"
                )
            return cls.first(counts, time)
        if mask is None:
            return None
        if mask.shape != (batch, time) or mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool [{batch}, {time}], got {mask.dtype} {list(mask.shape)}")
        return cls(mask)

    @classmethod
    def first(cls, lengths: Tensor, time: int) -> Self:
        """The first steps of each sequence, as many as its length."""
        return cls(torch.arange(time, device=lengths.device)[None, :] < lengths[:, None], lengths)

    def flip(self) -> Presence:
        """Of sequences whose time axis was turned around."""
        return Presence(self.mask.flip(1))

"""Tensor-Train recurrent networks on raw video.

The layers are here, imported when they are asked for, so that what needs no torch (`ttmodels.data`) starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttmodels.cells import TTGRUCell as TTGRUCell
    from ttmodels.cells import TTLSTMCell as TTLSTMCell
    from ttmodels.cells import TTRNNCell as TTRNNCell
    from ttmodels.compression import compress as compress
    from ttmodels.linear import TTLinear as TTLinear
    from ttmodels.linear import penalty as penalty
    from ttmodels.recurrent import TTGRU as TTGRU
    from ttmodels.recurrent import TTLSTM as TTLSTM
    from ttmodels.recurrent import TTRNN as TTRNN

_HOMES = {
    "TTLinear": "linear",
    "penalty": "linear",
    "TTRNN": "recurrent",
    "TTGRU": "recurrent",
    "TTLSTM": "recurrent",
    "TTRNNCell": "cells",
    "TTGRUCell": "cells",
    "TTLSTMCell": "cells",
    "compress": "compression",
}
__all__ = ["TTGRU", "TTLSTM", "TTRNN", "TTGRUCell", "TTLSTMCell", "TTLinear", "TTRNNCell", "compress", "penalty"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ttmodels.{_HOMES[name]}"), name)

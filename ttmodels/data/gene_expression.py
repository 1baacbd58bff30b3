"""Four sets of the R package spls: classes or values from gene expression or markers, as tables of text.

Reference: Chung, Chun, Keles, "spls: sparse partial least squares regression and classification", CRAN; as the Keras
package of Yang, Krompass, Tresp (ICML 2017) splits them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ttmodels.data.nips2003 import found, read_dense

SIZES = {"lymphoma": (4026, 1), "prostate": (6033, 1), "yeast": (106, 18), "mice": (145, 83)}
"""Features and targets of a row."""
NUM_CLASSES = {"lymphoma": 3, "prostate": 2}


def load_gene_expression(folder: Path, name: str, split: Literal["train", "valid"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a set and their classes, or their values where it has no classes.

    Shape: float32 [rows, features]; int64 [rows] or float32 [rows, values].

    Args:
        folder: holds NAME_train.data, NAME_train.labels and so on, plain or gzip, itself or in folders.

    Raises:
        FileNotFoundError: with where to get them.
        ValueError: a file that is not such a table; names it.
    """
    source = "Datasets/GenExpress of https://github.com/Tuyki/TT_RNN"
    paths = [found(folder, f"{name}_{split}.{kind}", source) for kind in ("data", "labels")]
    tables = [read_dense(path) for path in paths]
    for path, table, size in zip(paths, tables, SIZES[name], strict=True):
        if table.shape != (len(tables[0]), size):
            raise ValueError(f"{path}: expected {len(tables[0])} lines of {size} numbers, got {list(table.shape)}")
    x, y = tables
    if name not in NUM_CLASSES:
        return x, y
    if not np.isin(y, range(NUM_CLASSES[name])).all():
        raise ValueError(f"{paths[1]}: expected classes from 0 to {NUM_CLASSES[name] - 1}, got others")
    return x, y[:, 0].astype(np.int64)

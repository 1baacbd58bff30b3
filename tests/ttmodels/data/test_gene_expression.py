import gzip
from pathlib import Path

import numpy as np
import pytest

from ttmodels.data.gene_expression import load_gene_expression


def written(folder: Path, name: str, x: np.ndarray, y: np.ndarray) -> None:
    for kind, table in (("data", x), ("labels", y)):
        text = "\n".join(" ".join(map(str, row)) for row in table.tolist()) + "\n"
        (folder / f"{name}_train.{kind}.gz").write_bytes(gzip.compress(text.encode()))


def test_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4026))
    written(tmp_path, "lymphoma", x, np.array([[0], [2], [1], [2]]))
    rows, classes = load_gene_expression(tmp_path, "lymphoma", "train")
    np.testing.assert_allclose(rows, x, rtol=1e-6)
    assert rows.dtype == np.float32
    assert classes.dtype == np.int64
    assert classes.tolist() == [0, 2, 1, 2]


def test_values(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(3, 106)), np.random.default_rng(1).normal(size=(3, 18))
    written(tmp_path, "yeast", x, y)
    rows, values = load_gene_expression(tmp_path, "yeast", "train")
    np.testing.assert_allclose(rows, x, rtol=1e-6)
    np.testing.assert_allclose(values, y, rtol=1e-6)
    assert values.dtype == np.float32


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"yeast_train.data.gz in .*get it from Datasets/GenExpress"):
        load_gene_expression(tmp_path, "yeast", "train")
    written(tmp_path, "prostate", np.zeros((2, 6033)), np.array([[0], [2]]))
    with pytest.raises(ValueError, match=r"prostate_train.labels.gz: expected classes from 0 to 1"):
        load_gene_expression(tmp_path, "prostate", "train")
    written(tmp_path, "prostate", np.zeros((2, 6033)), np.array([[0]]))
    with pytest.raises(ValueError, match=r"prostate_train.labels.gz: expected 2 lines of 1 numbers, got \[1, 1\]"):
        load_gene_expression(tmp_path, "prostate", "train")
    written(tmp_path, "yeast", np.zeros((2, 105)), np.zeros((2, 18)))
    with pytest.raises(ValueError, match=r"yeast_train.data.gz: expected 2 lines of 106 numbers, got \[2, 105\]"):
        load_gene_expression(tmp_path, "yeast", "train")

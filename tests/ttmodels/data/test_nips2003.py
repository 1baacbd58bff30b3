import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_svmlight_file

from ttmodels.data.nips2003 import load_nips2003, read_dense, read_sparse


def lines(rows: list[list[str]]) -> str:
    """As the publisher has them: a blank behind every number."""
    return "".join("".join(f"{entry} " for entry in row) + "\n" for row in rows)


@pytest.mark.parametrize("packed", [False, True])
def test_dense_rows_and_labels(tmp_path: Path, packed: bool) -> None:
    x = np.random.default_rng(0).integers(0, 999, (4, 500))
    texts = {"data": lines([list(map(str, row)) for row in x.tolist()]), "labels": "1\n-1\n-1\n1\n"}
    folder = tmp_path / "MADELON"
    folder.mkdir()
    for kind, text in texts.items():
        path = folder / f"madelon_train.{kind}"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
    rows, classes = load_nips2003(tmp_path, "madelon", "train")
    assert rows.dtype == np.float32
    assert np.array_equal(rows, x)
    assert classes.tolist() == [1, 0, 0, 1]


def test_sparse_values_are_those_of_another_reader(tmp_path: Path) -> None:
    """scikit-learn reads the same lines with a label before each."""
    text = ["3:7 10:105 20000:1 ", "1:2 ", "17:113 80:66 "]
    path = tmp_path / "dexter_valid.data"
    path.write_text("\n".join(text) + "\n")
    (tmp_path / "other").write_text("\n".join(f"1 {line}" for line in text))
    expected, _ = load_svmlight_file(str(tmp_path / "other"), n_features=20_000, zero_based=False)
    (tmp_path / "dexter_valid.labels").write_text("1\n-1\n1\n")
    rows, classes = load_nips2003(tmp_path, "dexter", "valid")
    assert np.array_equal(rows, expected.toarray())
    assert classes.tolist() == [1, 0, 1]


def test_indices_alone_are_bytes(tmp_path: Path) -> None:
    path = tmp_path / "dorothea_train.data.gz"
    path.write_bytes(gzip.compress(b"1 5 10 \n\n2 \n"))
    rows = read_sparse(path, 10)
    assert rows.dtype == np.uint8
    assert [np.flatnonzero(row).tolist() for row in rows] == [[0, 4, 9], [], [1]]
    assert rows.max() == 1


@pytest.mark.parametrize("entry", ["0:3", "11:3", "-1:3", "a:3", "1.5:3"])
def test_a_wrong_index_is_named(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "data"
    path.write_text(f"1:2\n4:4 {entry}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: expected INDEX") + ".*" + re.escape(repr(entry))):
        read_sparse(path, 10)


def test_a_wrong_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("1:2\n4:x\n")
    with pytest.raises(ValueError, match=r"line 2: expected INDEX.*'4:x'"):
        read_sparse(path, 10)


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected arcene_train.data or arcene_train.data.gz in .*archive.ics"):
        load_nips2003(tmp_path, "arcene", "train")
    data, labels = tmp_path / "madelon_train.data", tmp_path / "madelon_train.labels"
    data.write_text("1 2\n3\n")
    with pytest.raises(ValueError, match=f"{data}: expected a table of numbers"):
        read_dense(data)
    data.write_text(lines([["1"] * 500] * 2))
    labels.write_text("1\n2\n")
    with pytest.raises(ValueError, match=r"expected 500 features and a label -1 or 1 a row"):
        load_nips2003(tmp_path, "madelon", "train")
    labels.write_text("1\n")
    with pytest.raises(ValueError, match=r"got rows \[2, 500\], 1 labels"):
        load_nips2003(tmp_path, "madelon", "train")

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ttmodels.data.nips2003 import NUM_FEATURES
from ttmodels.experiments.nips2003 import NIPS2003, Arcene, Dexter, Gisette


def written(folder: Path, name: str, split: str, num_rows: int) -> None:
    rng = np.random.default_rng(num_rows)
    rows = rng.integers(0, 999, (num_rows, NUM_FEATURES[name]))
    rows[:, 0] = range(num_rows)
    np.savetxt(folder / f"{name}_{split}.data", rows, "%d")
    np.savetxt(folder / f"{name}_{split}.labels", np.arange(num_rows) % 2 * 2 - 1, "%d")


@pytest.mark.parametrize("name", NIPS2003.sets)
def test_the_layer_has_the_published_size(name: str) -> None:
    """As the package prints them, with madelon's by its setting."""
    kind = NIPS2003.sets[name]
    assert math.prod(kind.input_modes) == NUM_FEATURES[name]
    sizes = {"arcene": 11_000, "gisette": 1_725, "dexter": 9_270, "dorothea": 23_250, "madelon": 885}
    cores = [p.numel() for key, p in kind().model(f"{name}-TT").named_parameters() if "cores" in key]
    assert sum(cores) == sizes[name]


def test_the_validation_part_is_tested(tmp_path: Path) -> None:
    written(tmp_path, "arcene", "train", 20)
    written(tmp_path, "arcene", "valid", 10)
    data = Arcene().load(tmp_path, 0)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [16, 4, 10]
    assert data.test[1].tolist() == [0, 1] * 5
    assert torch.equal(Arcene().load(tmp_path, 1).test[1], data.test[1])


def test_gisette_without_rows_to_train_on(tmp_path: Path) -> None:
    written(tmp_path, "gisette", "valid", 50)
    data = Gisette().load(tmp_path, 0)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [32, 8, 10]
    rows = torch.cat([data.train[0], data.valid[0], data.test[0]])
    assert len(rows.unique(dim=0)) == 50
    written(tmp_path, "gisette", "train", 30)
    assert len(Gisette().load(tmp_path, 0).test[1]) == 50


def test_documents_have_one_length() -> None:
    x = np.random.default_rng(0).integers(0, 9, (3, 20)).astype(np.float32)
    rows, again = Dexter().prepared(x, 5 * x)
    np.testing.assert_allclose((rows**2).mean(1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows, again, rtol=1e-5)

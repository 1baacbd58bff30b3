import numpy as np
import torch

from ttmodels.experiments.sequentia import Sequentia


def test_every_recording_is_in_one_split() -> None:
    rng = np.random.default_rng(0)
    recordings = [rng.normal(size=(length, 13)).astype(np.float32) for length in rng.integers(6, 90, 100)]
    data = Sequentia._parted(recordings, np.arange(100) % 10, 0)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [60, 20, 20]
    x = torch.cat([data.train[0], data.valid[0], data.test[0]])
    assert len(x.unique(dim=0)) == 100
    lengths = x.any(2).sum(1)
    assert sorted(lengths.tolist()) == sorted(min(len(recording), 48) for recording in recordings)
    assert all(not row[length:].any() for row, length in zip(x, lengths.tolist(), strict=True))


def test_what_is_silent_stays_so() -> None:
    x, _ = Sequentia().made(0).train
    varied = Sequentia().varied(x)
    assert torch.equal(varied.any(2), x.any(2))
    assert not torch.equal(varied, x)

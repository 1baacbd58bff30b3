import torch

from ttmodels.experiments.reuters import Reuters


def test_the_layer_has_the_published_size() -> None:
    cores = [p.numel() for name, p in Reuters().model("TT").named_parameters() if "cores" in name]
    assert sum(cores) == 9600


def test_a_document_is_which_words_it_has() -> None:
    x, y = Reuters().made(0).train
    assert set(x.unique().tolist()) == {0.0, 1.0}
    always = x.all(0)
    assert int(always.sum()) == 1  # the word that all have
    topics = x[:, x.sum(0).topk(5).indices]
    assert torch.equal(topics.sum(1), torch.full((len(y),), 2.0))


def test_words_of_the_test_split_alone_have_no_column() -> None:
    data = Reuters().made(0)
    seen = torch.cat([data.train[0], data.valid[0]]).any(0)
    assert not (data.test[0].any(0) & ~seen).any()

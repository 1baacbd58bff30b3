import torch

from ttmodels.experiments.reuters import Reuters, arranged, groups


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


def test_groups_are_of_like_rows_and_equally_large() -> None:
    """Eight far points, each sixteen times with some noise; each row is in one group."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randperm(128, generator=generator) % 8
    rows = 10 * torch.eye(8)[kind] + 0.1 * torch.randn(128, 8, generator=generator)
    found = groups(rows, 8)
    assert sorted(torch.cat(found).tolist()) == list(range(128))
    assert [len(group) for group in found] == [16] * 8
    apart = torch.stack([rows[group].var(0, unbiased=False).sum() for group in found])
    assert float(apart.mean()) < 0.3 * float(rows.var(0, unbiased=False).sum())
    assert sum(len(kind[group].unique()) == 1 for group in found) >= 4


def test_words_of_one_topic_differ_in_the_first_mode() -> None:
    """A hundred words a topic, ten topics, each word only in documents of its own."""
    topic = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) % 10
    y = torch.arange(200) % 10
    x = (topic == y[:, None]).float()
    order = arranged(x, y)
    assert sorted(order.tolist()) == list(range(1000))
    alike = (topic[order].view(10, 10, 10) == topic[order].view(10, 10, 10)[0]).float().mean()
    assert float(alike) > 0.9

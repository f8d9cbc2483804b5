import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.splitting import balanced_order


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 6), st.integers(0, 2**32))
def test_every_prefix_holds_each_class_in_proportion(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    order = balanced_order(labels, generator)
    assert sorted(order.tolist()) == list(range(n))
    for label in labels.unique():
        hits = (labels[order] == label).double().cumsum(0)
        share = hits[-1] / n
        most = 0.5 + (len(labels.unique()) - 2) * share / 2
        assert (hits - torch.arange(1, n + 1) * share).abs().max() <= most + 1e-9


def test_the_order_within_a_class_is_a_uniform_shuffle():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1, 0])
    first = [int(order[labels[order] == 0][0]) for order in (balanced_order(labels, generator) for _ in range(3000))]
    counts = torch.tensor(first).bincount(minlength=5)
    assert counts[[1, 3]].sum() == 0
    assert (counts[[0, 2, 4]] - 1000).abs().max() < 130  # five standard deviations


def test_the_same_generator_state_gives_the_same_order():
    labels = torch.arange(50) % 7
    one, other = (balanced_order(labels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, balanced_order(labels, torch.Generator().manual_seed(4)))

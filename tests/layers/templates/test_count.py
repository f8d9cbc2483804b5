import pytest

from layers import UsageError
from layers.templates.count import template_count


@pytest.mark.parametrize(
    ("rate", "filters", "minimum", "expected"),
    [
        (0.5, 64, 8, 32),
        (0.75, 64, 8, 16),
        (0.875, 64, 8, 8),
        (0.9, 64, 8, 8),
        (0.9, 64, 1, 6),
        (0.99, 64, 1, 1),
        (0.999, 64, 1, 1),
        (0.0, 64, 8, 64),
        (0.5, 6, 8, 6),
        (0.25, 10, 1, 8),
        (0.3, 512, 32, 358),
    ],
)
def test_pruning_rate_leaves_max_of_minimum_and_rounded_share(rate, filters, minimum, expected):
    assert template_count(rate, filters, minimum) == expected


def test_template_count_falls_with_the_rate_and_stays_in_its_limits(rng):
    for _ in range(200):
        filters, minimum = rng.randint(1, 600), rng.randint(1, 40)
        rates = sorted(rng.random() for _ in range(5))
        counts = [template_count(rate, filters, minimum) for rate in rates]
        assert counts == sorted(counts, reverse=True)
        assert all(min(minimum, filters) <= count <= filters for count in counts)
        for rate, count in zip(rates, counts, strict=True):
            assert count in (filters, minimum) or abs(count - (1 - rate) * filters) <= 0.5


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_pruning_rate_outside_its_range_is_refused(rate):
    with pytest.raises(UsageError, match=r"pruning_rate \(=.*\) must be in \[0, 1\)$"):
        template_count(rate, 64, 8)

import pytest

from layers.errors import UsageError
from results.analysis.compare import merge_fronts, new_members

OBJECTIVES = {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes", "flops"]}


@pytest.fixture
def two(ledger, make_row):
    """`demo` holds (0.5, 10) and (0.9, 100); `other` holds an equal, a better, a dominated and a smaller point."""
    ledger.create_study("other", {"score_name": "val_top1", "objectives": ["flops", "size_bytes", "val_top1"]})
    for number, (accuracy, size) in enumerate([(0.5, 10), (0.9, 100)]):
        ledger.append(make_row(number=number, score=accuracy, size_bytes=size))
    for number, (accuracy, size) in enumerate([(0.5, 10), (0.95, 100), (0.4, 50), (0.1, 1)]):
        ledger.append(make_row(study="other", number=number, score=accuracy, size_bytes=size))
    return ledger


def _members(table):
    return [(row["study"], row["score"], row["size_bytes"]) for row in table.to_pylist()]


def test_union_says_where_each_member_comes_from(two):
    expected = [("other", 0.1, 1), ("demo", 0.5, 10), ("other", 0.5, 10), ("other", 0.95, 100)]
    assert _members(merge_fronts(two, ["demo", "other"])) == expected
    assert _members(merge_fronts(two, ["other", "demo", "other"])) == [
        expected[0],
        *sorted(expected[1:3], reverse=True),
        expected[3],
    ]
    assert merge_fronts(two, ["demo"]).equals(two.front("demo"))


def test_difference_is_what_the_other_study_adds(two):
    assert _members(new_members(two, "demo", "other")) == [("other", 0.1, 1), ("other", 0.95, 100)]
    assert _members(new_members(two, "other", "demo")) == []


def test_studies_that_cannot_be_compared_are_refused(two, make_row):
    with pytest.raises(UsageError, match=r"studies \(=\[\]\) must name at least one"):
        merge_fronts(two, [])
    two.create_study("fast", {"score_name": "val_top1", "objectives": ["val_top1", "latency_ms"]})
    with pytest.raises(UsageError, match="'fast' cannot be compared with 'demo': its objectives are val_top1, latency"):
        merge_fronts(two, ["demo", "fast"])
    two.create_study("cifar", OBJECTIVES)
    two.append(make_row(study="cifar", dataset="cifar10"))
    with pytest.raises(UsageError, match="demo, cifar cannot be compared: their data sets are cifar10, digits"):
        new_members(two, "demo", "cifar")

import numpy as np
import pytest

from layers.errors import UsageError
from results.objectives import OBJECTIVES, losses, parse_objectives
from results.schema import to_table


def test_known_objectives_keep_their_order_and_direction():
    parsed = parse_objectives(["flops", "val_top1"])
    assert [(objective.name, objective.direction) for objective in parsed] == [("flops", "min"), ("val_top1", "max")]
    assert [name for name, objective in OBJECTIVES.items() if objective.direction == "max"] == ["val_top1"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val_top1", "speed"], "objective 'speed' is unknown; allowed are val_top1, size_bytes, flops, latency_ms"),
        (["val_top1"], "must be at least two different ones"),
        ([], r"objectives \(=none\)"),
        (["val_top1", "val_top1"], "must be at least two different ones"),
        (["size_bytes", "flops"], "must include val_top1"),
    ],
)
def test_unfit_objectives_are_refused(names, message):
    with pytest.raises(UsageError, match=message):
        parse_objectives(names)


def test_losses_are_lower_is_better_and_null_is_nan(make_row):
    table = to_table([make_row(val_top1=0.8, latency_ms=3.0), make_row(number=1, val_top1=0.9)])
    found = losses(table, parse_objectives(["latency_ms", "val_top1"]))
    np.testing.assert_array_equal(found, [[3.0, -0.8], [np.nan, -0.9]])

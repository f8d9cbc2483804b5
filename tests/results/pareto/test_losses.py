import numpy as np

from results.objectives import parse_objectives
from results.pareto.losses import losses
from results.schema import to_table


def test_losses_are_lower_is_better_and_null_is_nan(make_row):
    table = to_table([make_row(score=0.8, latency_ms=3.0), make_row(number=1, score=0.9)])
    found = losses(table, parse_objectives(["latency_ms", "val_top1"], score_name="val_top1"))
    np.testing.assert_array_equal(found, [[3.0, -0.8], [np.nan, -0.9]])

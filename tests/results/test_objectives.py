import pytest

from layers.errors import UsageError
from results.objectives import COSTS, init_name, parse_objectives


def test_known_objectives_keep_their_order_and_direction():
    parsed = parse_objectives(["flops", "val_top1"], score_name="val_top1")
    assert [(objective.name, objective.direction) for objective in parsed] == [("flops", "min"), ("val_top1", "max")]
    assert [objective.column for objective in parsed] == ["flops", "score"]
    assert all((cost.name, cost.column, cost.direction) == (name, name, "min") for name, cost in COSTS.items())


def test_score_and_its_own_name_mean_the_same():
    expected = parse_objectives(["miou", "flops"], score_name="miou")
    assert parse_objectives(["score", "flops"], score_name="miou") == expected
    assert [(objective.name, objective.column) for objective in expected] == [("miou", "score"), ("flops", "flops")]
    with pytest.raises(UsageError, match="must be at least two different ones of miou, size_bytes"):
        parse_objectives(["score", "miou"], score_name="miou")
    assert (init_name("val_top1"), init_name("miou")) == ("init_top1", "init_miou")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val_top1", "speed"], r"objective \(='speed'\) must be one of val_top1, size_bytes, flops, latency_ms"),
        (["val_top1"], "must be at least two different ones"),
        ([], r"objectives \(=none\)"),
        (["val_top1", "val_top1"], "must be at least two different ones"),
        (["size_bytes", "flops"], "must include val_top1"),
    ],
)
def test_unfit_objectives_are_refused(names, message):
    with pytest.raises(UsageError, match=message):
        parse_objectives(names, score_name="val_top1")

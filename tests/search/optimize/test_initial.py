from search.optimize.initial import first_configs, ladder
from search.study.budget import Budget, extremes
from spaces import BlockConfig, NetworkConfig, Space


def test_what_comes_first_is_canonical_and_the_uncompressed_network_before_all(space: Space) -> None:
    limited = space.restrict({"all": {"harmonics": [3], "bits": [6]}})  # three harmonics of three taps do nothing
    limits = extremes(limited, Budget())
    assert any(limited.network.canonical(config) != config for config in limits)
    first = first_configs(limited, "resnet8", limits, forecast=False).at_once
    assert first[0] == NetworkConfig(minimum_templates=limited.minimum_templates)
    assert [limited.network.digest(config) for config in first[1:3]] == [limited.network.digest(c) for c in limits]
    assert all(limited.network.canonical(config) == config for config in first)
    assert 3 < len(first) <= 7


def test_with_a_forecast_only_the_extremes_come_at_once_and_all_that_is_known_is_offered(space: Space) -> None:
    limits, sketch = extremes(space, Budget()), NetworkConfig(blocks={"linear": BlockConfig(bits=6)})
    first = first_configs(space, "resnet8", limits, forecast=True, sketches=[sketch])
    assert [space.network.digest(config) for config in first.at_once] == [space.network.digest(c) for c in limits]
    assert first.later == [NetworkConfig(minimum_templates=space.minimum_templates)]
    assert first.offered == [sketch, *(rung.config for rung in ladder(space, "resnet8"))]

from search.optimize.initial import initial_configs
from search.study.budget import Budget, extremes
from spaces import NetworkConfig, Space


def test_what_comes_first_is_canonical_and_the_uncompressed_network_before_all(space: Space) -> None:
    limited = space.restrict({"all": {"harmonics": [3], "bits": [6]}})  # three harmonics of three taps do nothing
    limits = extremes(limited, Budget())
    assert any(limited.network.canonical(config) != config for config in limits)
    first = list(initial_configs(limited, "resnet8", limits))
    assert first[0] == NetworkConfig(minimum_templates=limited.minimum_templates)
    assert [limited.network.digest(config) for config in first[1:3]] == [limited.network.digest(c) for c in limits]
    assert all(limited.network.canonical(config) == config for config in first)
    assert 3 < len(first) <= 7

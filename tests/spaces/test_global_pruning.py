"""One threshold over a network: which filters fall below it, and what space its rates make."""

import random

import pytest
import torch
from torch import Tensor

from layers import UsageError
from spaces import Network, NetworkConfig, Space
from spaces.global_pruning import global_rates, has_global_rate, resolve_global_rates


@pytest.fixture
def single(wide) -> Network:
    return Network.from_module(wide, (3, 12, 12), "layer")


@pytest.fixture
def saliency(single: Network, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = {name: shape for name, shape in single.shapes.items() if shape.kind == "conv2d"}
    scales = torch.rand(len(shapes), generator=generator)
    return {
        name: scale * torch.rand(shape.out_channels, generator=generator)
        for (name, shape), scale in zip(shapes.items(), scales, strict=True)
    }


def test_the_least_salient_filters_go_wherever_they_are(single: Network, saliency, rng: random.Random) -> None:
    rate = rng.uniform(0.1, 0.9)
    rates = global_rates(single, saliency, rate, 1)
    assert rates.keys() == saliency.keys()
    gone, least_kept, at_minimum = [], 1.0, 0
    for name, values in saliency.items():
        templates = round((1 - rates[name]) * len(values))
        ordered = values.sort(descending=True).values
        gone.append(ordered[templates:])
        if templates == 1:  # its last filter may be one that the threshold would have taken
            at_minimum += 1
        else:
            least_kept = min(least_kept, float(ordered[templates - 1]))
    pruned, asked = torch.cat(gone), round(rate * sum(len(values) for values in saliency.values()))
    assert asked - at_minimum <= len(pruned) <= asked
    assert float(pruned.max()) <= least_kept


def test_a_layer_keeps_its_minimum_and_a_block_has_one_rate(single: Network, saliency, wide_network: Network) -> None:
    low = {**saliency, "stem": saliency["stem"] * 0 - 1}
    assert global_rates(single, low, 0.3, 6)["stem"] == 1 - 6 / 16
    assert global_rates(single, low, 0.3, 20)["stem"] == 0
    alone, together = (global_rates(network, saliency, 0.5, 1) for network in (single, wide_network))
    for block, rate in together.items():
        inside = [name for name in wide_network.layers_in(block) if name in saliency]
        filters = sum(len(saliency[name]) for name in inside)
        assert rate == pytest.approx(sum(alone[name] * len(saliency[name]) for name in inside) / filters, abs=1e-5)


def test_thresholds_become_rates_of_the_space(single: Network, saliency) -> None:
    rates = global_rates(single, saliency, 0.5, 2)
    limits = {
        "body2": {"bits": [8]},
        "all": {"pruning_rate": ["none", "global 0.5", 0.25], "bits": [6]},
        "stem": {"pruning_rate": [0.5]},
    }
    assert has_global_rate(limits)
    resolved = resolve_global_rates(limits, single, saliency, 2)
    assert not has_global_rate(resolved)
    choices = Space.default(single, 2).restrict(resolved).choices
    assert choices["stem"]["pruning_rate"] == (0.5,)
    assert choices["body2"]["bits"] == (8,)
    assert choices["body.0"]["bits"] == (6,)
    for block in ("body.0", "body.4", "body2"):
        assert choices[block]["pruning_rate"] == tuple(dict.fromkeys((None, rates[block] or None, 0.25)))
    assert "pruning_rate" not in choices["head"]
    scalar = resolve_global_rates({"body2": {"pruning_rate": "global 0.5"}}, single, saliency, 2)
    assert scalar == {"body2": {"pruning_rate": [rates["body2"] or None]}}


def test_a_threshold_under_a_parts_name_is_for_its_layers(single: Network, saliency) -> None:
    """And a smaller part's own rates win, whatever stands first."""
    rates = global_rates(single, saliency, 0.5, 2)
    limits = {
        "body.3": {"pruning_rate": [0.25]},
        "body": {"pruning_rate": ["global 0.5"], "bits": [4]},
        "all": {"pruning_rate": ["global 0.75"]},
    }
    chosen = Space.default(single, 2).restrict(resolve_global_rates(limits, single, saliency, 2)).choices
    assert chosen["body.0"]["pruning_rate"] == (rates["body.0"] or None,)
    assert chosen["body.3"]["pruning_rate"] == (0.25,)
    assert chosen["body.4"]["pruning_rate"] == (rates["body.4"] or None,)
    assert [chosen[name]["bits"] for name in ("body.0", "body.3", "body.4")] == [(4,)] * 3
    assert chosen["stem"]["pruning_rate"] == (global_rates(single, saliency, 0.75, 2)["stem"] or None,)
    plain = {"all": {"pruning_rate": ["global 0.75"]}, "body": {"pruning_rate": [0.5]}}
    chosen = Space.default(single, 2).restrict(resolve_global_rates(plain, single, saliency, 2)).choices
    assert {chosen[name]["pruning_rate"] for name in ("body.0", "body.3", "body.4")} == {(0.5,)}


def test_a_rate_leaves_as_many_templates_as_the_threshold(single: Network, saliency, rng: random.Random) -> None:
    rate = rng.uniform(0.2, 0.8)
    space = Space.default(single, 1).restrict(
        resolve_global_rates({"all": {"pruning_rate": [f"global {rate:.3f}"]}}, single, saliency, 1)
    )
    assert isinstance(space.decode({}), NetworkConfig)
    forms = single.forms(space.decode({name: values[-1] for name, values in space.knobs.items()}))
    rates = global_rates(single, saliency, float(f"{rate:.3f}"), 1)
    for name, values in saliency.items():
        left = forms[name].templates if name in forms and forms[name].templates else len(values)
        assert left == round((1 - rates[name]) * len(values))


@pytest.mark.parametrize("value", ["global", "global 5", "global 1.0", "globally 0.5"])
def test_a_global_rate_that_cannot_be_is_named(single: Network, saliency, value: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^pruning_rate \(='{value}'\) must be a rate between 0 and 1, or one such as 'global 0\.5'$"
    ):
        resolve_global_rates({"all": {"pruning_rate": [value]}}, single, saliency, 1)


def test_a_block_without_filters_is_named(single: Network, saliency) -> None:
    with pytest.raises(UsageError, match=r"^space\.head has no filters to prune; stem, body\.0,"):
        resolve_global_rates({"head": {"pruning_rate": ["global 0.5"]}}, single, saliency, 1)
    with pytest.raises(UsageError, match=r"^the network has no convolutions"):
        global_rates(single, {}, 0.5, 1)
    with pytest.raises(UsageError, match=r"^global pruning rate \(=1\.5\) must be between 0 and 1"):
        global_rates(single, saliency, 1.5, 1)

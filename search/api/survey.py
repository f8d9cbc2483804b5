"""What a network is made of and what a search could make of it, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from layers import Cost, compress_model
from search.api.networks import LoadedNetwork
from search.study.budget import Budget, extremes
from search.study.plan import StudyPlan
from search.study.workload import make_space
from spaces import BlockConfig, Network, NetworkConfig, Preset, Space, presets
from spaces.global_pruning import has_global_rate, resolve_global_rates
from spaces.network import NORMS_AND_BIASES
from trainers.estimate import TrialEstimate, estimate_trial
from trainers.fidelity import check_fidelity
from trainers.runtime.device import keep_freed_memory
from trainers.runtime.latency import model_latency, trace_skeleton
from trainers.start.saliency import filter_saliency

__all__ = ["Survey", "survey", "survey_network"]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Blocks, choices, reachable costs."""

    blocks: tuple[Mapping[str, Any], ...]
    """Of each block: `block`, `layers`, `parameters`, `size_bytes`, `flops`, `choices` (knob to values).

    The last may be `norms_and_biases`, all biases and norms; biases are counted in their layers' blocks too."""
    space_size: int
    """Points of the space, before spellings of one network collapse."""
    uncompressed: Mapping[str, int]
    least: Mapping[str, int]
    """Least `size_bytes` and least `flops` in the space, each on its own."""
    trial_flops: int
    """Arithmetic of one trial's fine-tuning of the uncompressed network, 0 without data."""
    trial: TrialEstimate | None
    """Time and memory of a trial on a device, None without data."""
    latency: Mapping[str, Any] | None
    """The uncompressed network's, by the names of the ledger's columns, and the `seconds` that taking one adds to a
    trial; None unless it is an objective."""
    uncounted: tuple[str, ...]
    """Names of operators whose products are in no `macs` and `flops` (`spaces.products`)."""
    presets: tuple[Mapping[str, Any], ...]
    """Of each preset (`spaces.papers`): `name`, `source`, `parameters`, `size_bytes`, `flops`, `published_top1`,
    `published_base`, and `percent_size`, `percent_flops`, `percent_parameters` of the uncompressed network. Parameters
    are counted as Costain & Prisacariu do: those of convolutions and linear layers alone."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "blocks": [dict(block) for block in self.blocks],
            "space_size": self.space_size,
            "uncompressed": dict(self.uncompressed),
            "least": dict(self.least),
            "trial_flops": self.trial_flops,
            "trial": self.trial and self.trial.to_json(),
            "latency": None if self.latency is None else dict(self.latency),
            "uncounted": list(self.uncounted),
            "presets": [dict(preset) for preset in self.presets],
        }


def survey_network(loaded: LoadedNetwork, plan: StudyPlan, *, device: torch.device) -> Survey:
    """Survey the space that a search of this plan would search; with data, estimate a trial on the device too.

    Where latency is an objective the uncompressed network's is taken. Raises `UsageError` if the network cannot be
    compressed truly (`trainers.fidelity`).
    """
    space = _search_space(plan, loaded)
    limits = extremes(space, Budget())
    check_fidelity(plan.model, loaded.module, space.network, loaded.image, loaded.classes, limits)
    trial = None if loaded.data is None else _estimate(loaded, plan, device)
    train_images = 0 if loaded.data is None else len(loaded.data.train)
    latency = _latency(loaded, plan, device) if plan.times else None
    found = survey(space, model=plan.model, train_images=train_images, epochs=plan.epochs, trial=trial)
    return replace(found, latency=latency)


def survey(space: Space, *, model: str, train_images: int, epochs: int, trial: TrialEstimate | None = None) -> Survey:
    """Count everything but the estimate from shapes alone; a backward pass counts as two forward passes.

    The model's name selects the papers' rows; they are counted even if they lie outside the space.
    """
    network = space.network
    whole = network.cost(NetworkConfig())
    costs = {block: space.block_costs(block).values() for block in space.choices}
    return Survey(
        blocks=tuple(_block(space, block) for block in space.choices),
        space_size=space.size,
        uncompressed={
            "parameters": whole.parameters,
            "size_bytes": whole.size_bytes,
            "macs": whole.macs,
            "flops": whole.flops,
        },
        least={
            "size_bytes": network.rest.size_bytes + sum(min(c.size_bytes for c in block) for block in costs.values()),
            "flops": network.rest.flops + sum(min(c.flops for c in block) for block in costs.values()),
        },
        trial_flops=3 * whole.flops * train_images * epochs,
        trial=trial,
        latency=None,
        uncounted=network.uncounted,
        presets=tuple(_preset(network, preset, whole) for preset in presets(model, network)),
    )


def _search_space(plan: StudyPlan, loaded: LoadedNetwork) -> Space:
    """Return the space of the plan; its global pruning rates are resolved on the network's weights."""
    network = Network.from_module(loaded.module, loaded.image, plan.granularity)
    if has_global_rate(plan.space):
        saliency = filter_saliency(plan.saliency, loaded.module, loaded.data, seed=plan.seed)
        limits = resolve_global_rates(plan.space, network, saliency, plan.minimum_templates)
        plan = replace(plan, space=limits)
    return make_space(plan, network)


def _estimate(loaded: LoadedNetwork, plan: StudyPlan, device: torch.device) -> TrialEstimate:
    """Time a few training steps, after telling the allocator what the processes of trials tell it."""
    assert loaded.data is not None
    keep_freed_memory()
    return estimate_trial(
        loaded.module,
        loaded.image,
        recipe=plan.recipe,
        epochs=plan.epochs,
        train_images=len(loaded.data.train),
        val_images=len(loaded.data.val),
        device=device,
        streamed=not isinstance(loaded.data.train.images, torch.Tensor),
    )


def _latency(loaded: LoadedNetwork, plan: StudyPlan, device: torch.device) -> dict[str, Any]:
    """Take the uncompressed network's latency as a trial would, and the time of that."""
    skeleton = trace_skeleton(loaded.module, loaded.image) if plan.times_files else None
    model = compress_model(loaded.module, {})
    started = time.perf_counter()
    latency = model_latency(
        model,
        loaded.image,
        device,
        runtime=plan.runtime,
        threads=plan.latency_threads,
        skeleton=lambda: skeleton or trace_skeleton(loaded.module, loaded.image),
    )
    return {**asdict(latency), "seconds": time.perf_counter() - started}


def _block(space: Space, block: str) -> dict[str, Any]:
    network = space.network
    plain = network.norms_and_biases_cost() if block == NORMS_AND_BIASES else None
    cost = plain or network.block_cost(block, BlockConfig(), space.minimum_templates)
    return {
        "block": block,
        "layers": list(network.layers_in(block)),
        "parameters": cost.parameters,
        "size_bytes": cost.size_bytes,
        "flops": cost.flops,
        "choices": {knob: list(values) for knob, values in space.choices[block].items()},
    }


def _preset(network: Network, preset: Preset, whole: Cost) -> dict[str, Any]:
    cost, norms = network.cost(preset.config), network.rest.parameters
    return {
        "name": preset.name,
        "source": preset.source,
        "parameters": cost.parameters,
        "size_bytes": cost.size_bytes,
        "flops": cost.flops,
        "percent_parameters": 100 * (cost.parameters - norms) / (whole.parameters - norms),
        "percent_size": 100 * cost.size_bytes / whole.size_bytes,
        "percent_flops": 100 * cost.flops / whole.flops,
        "published_top1": preset.published_top1,
        "published_base": preset.published_base,
    }

"""What all trials of a study share, loaded once: data, the trained network, and what the search knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from search.study.plan import StudyPlan
from spaces import Network, NetworkConfig, Space, state_sha256
from spaces.global_pruning import has_global_rate, resolve_global_rates
from trainers.data import Data, load_data
from trainers.evaluation import evaluate
from trainers.start.saliency import filter_saliency
from trainers.trial import load_baseline

__all__ = ["Workload", "make_space"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What all trials of a study share, loaded."""

    data: Data
    baseline: nn.Module
    network: Network
    weights_sha256: str

    @classmethod
    def load(cls, plan: StudyPlan, told: Callable[[int, int], None] = lambda done, total: None) -> Workload:
        """Load the data and the trained network of a plan; `told` is that of `load_data`."""
        data = load_data(plan.data, told)
        baseline, network = load_baseline(plan.model, plan.weights, data, plan.granularity)
        return cls(data=data, baseline=baseline, network=network, weights_sha256=state_sha256(baseline))

    def resolved(self, plan: StudyPlan) -> StudyPlan:
        """The plan with rates in the place of thresholds of saliency, which depend on the trained weights."""
        if not has_global_rate(plan.space):
            return plan
        found = filter_saliency(plan.saliency, self.baseline, self.data, seed=plan.seed)
        return replace(plan, space=resolve_global_rates(plan.space, self.network, found, plan.minimum_templates))

    def identity(self) -> dict[str, str]:
        """Content hashes that a study's record keeps."""
        return {"weights_sha256": self.weights_sha256, "data_fingerprint": self.data.fingerprint}

    def reference(self) -> dict[str, Any]:
        """What the uncompressed network measures and costs, untouched."""
        found = evaluate(self.baseline, self.data.val, mean=self.data.mean, std=self.data.std, device="cpu")
        cost = self.network.cost(NetworkConfig())
        return {
            "val_top1": found.top1,
            "val_top5": found.top5,
            "val_images": found.n,
            "parameters": cost.parameters,
            "size_bytes": cost.size_bytes,
            "macs": cost.macs,
            "flops": cost.flops,
        }


def make_space(plan: StudyPlan, network: Network) -> Space:
    """The search space of a plan."""
    return Space.default(network, plan.minimum_templates).restrict(plan.space)

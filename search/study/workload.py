"""What all trials of a study share, loaded once: the data, the trained network, and its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from search.study.plan import StudyPlan
from spaces import Network, NetworkConfig, Space, state_sha256
from spaces.global_pruning import has_global_rate, resolve_global_rates
from trainers.data import Data, load_data
from trainers.evaluation import evaluate
from trainers.score import SCORE_NAME
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
    def load(cls, plan: StudyPlan, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Workload:
        """Load the data and the trained network of a plan; `on_progress` is that of `load_data`."""
        data = load_data(plan.data, on_progress)
        baseline, network = load_baseline(plan.model, plan.weights, data, plan.granularity)
        return cls(data=data, baseline=baseline, network=network, weights_sha256=state_sha256(baseline))

    def resolved(self, plan: StudyPlan) -> StudyPlan:
        """Return the plan with pruning rates for each block in place of global ones, which depend on the weights."""
        if not has_global_rate(plan.space):
            return plan
        saliency = filter_saliency(plan.saliency, self.baseline, self.data, seed=plan.seed)
        return replace(plan, space=resolve_global_rates(plan.space, self.network, saliency, plan.minimum_templates))

    def identity(self) -> dict[str, str]:
        """Return the content hashes that a study's record keeps."""
        return {"weights_sha256": self.weights_sha256, "data_fingerprint": self.data.fingerprint}

    def reference(self) -> dict[str, Any]:
        """Return what the uncompressed network measures and costs, untouched."""
        evaluation = evaluate(self.baseline, self.data.val, self.data.normalize, device="cpu")
        metrics = evaluation.metrics("val")
        cost = self.network.cost(NetworkConfig())
        return {
            "score": metrics[SCORE_NAME],
            "metrics": metrics,
            "val_images": evaluation.n,
            **asdict(cost),
            "flops": cost.flops,
        }


def make_space(plan: StudyPlan, network: Network) -> Space:
    """Return the search space of a plan."""
    return Space.default(network, plan.minimum_templates).restrict(plan.space)

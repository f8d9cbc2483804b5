"""What all trials of a study share, loaded once: the data, the trained network, and its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from layers import UsageError
from search.study.objects import NO_OBJECTS, Objects
from search.study.plan import StudyPlan
from spaces import Network, NetworkConfig, Space, state_sha256, weights_transforms
from spaces.global_pruning import has_global_rate, resolve_global_rates
from spaces.identity import network_identity
from spaces.models import copy_module
from spaces.portable.skeleton import Skeleton
from spaces.weights import recorded_normalization
from trainers.data import Data, DataSpec, load_data
from trainers.data.objects import Parts, object_data, read_parts
from trainers.evaluation import evaluate
from trainers.fidelity import check_copy, check_fidelity
from trainers.runtime.latency import trace_skeleton
from trainers.score import SCORE_NAME
from trainers.start.saliency import filter_saliency
from trainers.trial import load_baseline

__all__ = ["Workload", "load_images", "make_space", "prepared_data"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What all trials of a study share, loaded."""

    data: Data
    baseline: nn.Module
    network: Network
    weights_sha256: str
    network_identity: dict[str, Any]
    """What the network computes (`spaces.identity`)."""

    @classmethod
    def load(
        cls,
        plan: StudyPlan,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        objects: Objects = NO_OBJECTS,
    ) -> Workload:
        """Load the data and the trained network of a plan; `on_progress` is that of `load_data`.

        Raises `UsageError` unless `objects` are those that the plan is about.
        """
        objects.check(model=plan.model)
        data = load_images(plan.data, on_progress, objects)
        baseline, network = load_baseline(plan.model, plan.weights, data, plan.granularity, module=objects.model)
        if objects.model is not None:
            check_copy(plan.model, objects.model, baseline, data.val.image_shape)
        return cls(
            data=data,
            baseline=baseline,
            network=network,
            weights_sha256=state_sha256(baseline),
            network_identity=network_identity(baseline, data.val.image_shape),
        )

    def resolved(self, plan: StudyPlan) -> StudyPlan:
        """Return the plan with pruning rates for each block in place of global ones, which depend on the weights."""
        if not has_global_rate(plan.space):
            return plan
        saliency = filter_saliency(plan.saliency, self.baseline, self.data, seed=plan.seed)
        return replace(plan, space=resolve_global_rates(plan.space, self.network, saliency, plan.minimum_templates))

    def check_fidelity(self, model: str, configs: Sequence[NetworkConfig]) -> None:
        """Check that the network, of this name, can be compressed truly (`trainers.fidelity`)."""
        check_fidelity(model, self.baseline, self.network, self.data.val.image_shape, self.data.classes, configs)

    def hashes(self) -> dict[str, str]:
        """Return the content hashes that are part of a trial's identity."""
        return {"weights_sha256": self.weights_sha256, "data_fingerprint": self.data.fingerprint}

    @cached_property
    def skeleton(self) -> Skeleton:
        """The network's ONNX graph, which the files of all trials are made from."""
        return trace_skeleton(self.baseline, self.data.val.image_shape)

    def identity(self) -> dict[str, Any]:
        """Return what a study's record keeps, to know network and data again by their content."""
        return {**self.hashes(), "network": self.network_identity}

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


def load_images(
    spec: DataSpec,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    objects: Objects = NO_OBJECTS,
) -> Data:
    """Load data by name, or split those of `objects`; raise `UsageError` unless the spec is about these."""
    objects.check(data=spec.name)
    if objects.data is None:
        return load_data(spec, on_progress)
    parts = read_parts(objects.data, on_progress)
    return object_data(spec, parts, _count_outputs(objects.model, parts))


def prepared_data(spec: DataSpec, model: str, weights: str) -> DataSpec:
    """Return the data as the weights take them, where the spec leaves that open.

    Torchvision says so for its own, and files of `overtone train` for theirs, if a normalization was given there.
    """
    if spec.is_object:
        return spec
    if transforms := weights_transforms(model, weights):
        return spec.prepared(**transforms)
    own = recorded_normalization(weights)
    return spec if own is None or spec.mean is not None else replace(spec, mean=own[0], std=own[1])


def _count_outputs(model: nn.Module | None, parts: Parts) -> int | None:
    """Return how many outputs a user's module has for an image, None if there is none or it cannot be told."""
    if model is None:
        return None
    images, _ = next(iter(parts.values()))
    try:
        with torch.no_grad():
            return int(copy_module(model)(torch.zeros(2, *images.shape[1:])).shape[-1])
    except UsageError:
        raise
    except Exception:  # of the user's own code; `check_outputs` says what it is
        return None


def make_space(plan: StudyPlan, network: Network) -> Space:
    """Return the search space of a plan."""
    return Space.default(network, plan.minimum_templates, int8=plan.times_files).restrict(plan.space)

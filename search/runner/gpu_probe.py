"""How many trials fit on one GPU, by the memory that one takes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import ray
import torch

from layers import OvertoneError
from search.study.workload import Workload
from trainers.data import Data, Split
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

__all__ = ["gpu_share", "share_of"]

_CONTEXT_BYTES = 600 * 10**6
"""What CUDA takes in each process before a tensor is there."""
_USED = 0.9
"""Share of the GPU's memory that trials may take together."""
_MOST = 8
"""Trials on one GPU; more wait for each other."""
_STEPS = 3


def gpu_share(workload: Workload, recipe: TrainingRecipe) -> float:
    """GPUs that one trial needs, 1 / k: trains the uncompressed network for a few steps on a GPU of the cluster.

    Raises `OvertoneError` where the cluster's GPUs cannot be used.
    """
    task = ray.remote(num_gpus=1, max_retries=0)(_probe)
    try:
        used, total = ray.get(task.remote(ray.put(workload), recipe))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OvertoneError(f"gpus_per_trial (='auto') could not try a trial on a GPU: {reason}") from error
    return share_of(used, total)


def share_of(used: int, total: int) -> float:
    """1 / k where k trials fit on a GPU of `total` bytes, each of which takes `used` and what CUDA takes itself."""
    fitting = int(_USED * total / (used + _CONTEXT_BYTES))
    return 1 / min(max(1, fitting), _MOST)


def _probe(workload: Workload, recipe: TrainingRecipe) -> tuple[int, int]:
    """Bytes that training reserves, and the GPU's."""
    if not torch.cuda.is_available():
        raise OvertoneError("PyTorch sees no GPU there; give a number.")
    teacher = workload.baseline if recipe.distillation else None
    given: dict[str, Any] = {"epochs": 1, "seed": 0, "device": "cuda", "teacher": teacher}
    for _ in TrainingLoop(copy.deepcopy(workload.baseline), _few(workload.data, recipe), recipe, **given):
        pass
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def _few(data: Data, recipe: TrainingRecipe) -> Data:
    """The same with training images for a few steps, repeated where there are too few for one."""
    rows = torch.arange(_STEPS * recipe.batch_size) % len(data.train)
    return dataclasses.replace(data, train=Split(images=data.train.take(rows), labels=data.train.labels[rows]))

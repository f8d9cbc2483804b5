"""How many trials fit on one GPU, from the memory that one takes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import ray
import torch
from rich.console import Console

from layers import OvertoneError
from search.runner.waiting import WaitingNotice
from search.study.workload import Workload
from trainers.data import Data, Split
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

__all__ = ["gpu_share", "share_of"]

_CONTEXT_BYTES = 600 * 10**6
"""Memory that CUDA takes in each process before there is a tensor."""
_USED = 0.9
"""Share of the GPU's memory that trials may take together."""
_MOST = 8
"""Most trials on one GPU; more of them wait for each other."""
_STEPS = 3


def gpu_share(workload: Workload, recipe: TrainingRecipe, console: Console) -> float:
    """Return the part of a GPU that one trial needs, 1 / k.

    Trains the uncompressed network for a few steps on a GPU of the cluster; the console is told of a long wait for
    one. Raises `OvertoneError` if the cluster's
    GPUs cannot be used.
    """
    task = ray.remote(num_gpus=1, max_retries=0)(_probe)
    try:
        notice = WaitingNotice(console, "the trial for --gpus-per-trial auto", cpus=1, gpus=1)
        answer = task.remote(ray.put(workload), recipe)
        while not ray.wait([answer], timeout=5)[0]:
            notice.waits()
        used, total = ray.get(answer)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OvertoneError(f"cannot try a trial on a GPU for --gpus-per-trial auto: {reason}") from error
    return share_of(used, total)


def share_of(used: int, total: int) -> float:
    """Return 1 / k for the k trials that fit on a GPU of `total` bytes; each takes `used` bytes and CUDA's own."""
    fitting = int(_USED * total / (used + _CONTEXT_BYTES))
    return 1 / min(max(1, fitting), _MOST)


def _probe(workload: Workload, recipe: TrainingRecipe) -> tuple[int, int]:
    """Return the bytes that training reserves, and those of the GPU."""
    if not torch.cuda.is_available():
        raise OvertoneError("PyTorch sees no GPU there, give a number")
    teacher = workload.baseline if recipe.distillation else None
    data = _few_steps(workload.data, recipe)
    options: dict[str, Any] = {"epochs": 1, "seed": 0, "device": "cuda", "teacher": teacher}
    for _ in TrainingLoop(copy.deepcopy(workload.baseline), data, recipe, **options):
        pass
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def _few_steps(data: Data, recipe: TrainingRecipe) -> Data:
    """Return the data with training images for a few steps, repeated if there are too few for one."""
    rows = torch.arange(_STEPS * recipe.batch_size) % len(data.train)
    return dataclasses.replace(data, train=Split(images=data.train.take(rows), labels=data.train.labels[rows]))

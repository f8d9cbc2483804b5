"""How many trials fit on one GPU, by the memory that one takes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import ray
import torch

from layers import OvertoneError
from search.study.workload import Subject
from trainers.data import Data, Split
from trainers.training.loop import Finetuning
from trainers.training.recipe import Schedule

__all__ = ["gpu_share", "share_of"]

_CONTEXT_BYTES = 600 * 10**6
"""What CUDA takes in each process before a tensor is there."""
_USED = 0.9
"""Share of the GPU's memory that trials may take together."""
_MOST = 8
"""Trials on one GPU; more wait for each other."""
_STEPS = 3


def gpu_share(subject: Subject, schedule: Schedule) -> float:
    """GPUs that one trial needs, 1 / k: trains the uncompressed network for a few steps on a GPU of the cluster.

    Raises `OvertoneError` where the cluster's GPUs cannot be used.
    """
    task = ray.remote(num_gpus=1, max_retries=0)(_probe)
    try:
        used, total = ray.get(task.remote(ray.put(subject), schedule))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OvertoneError(f"gpus_per_trial (='auto') could not try a trial on a GPU: {reason}") from error
    return share_of(used, total)


def share_of(used: int, total: int) -> float:
    """1 / k where k trials fit on a GPU of `total` bytes, each of which takes `used` and what CUDA takes itself."""
    fitting = int(_USED * total / (used + _CONTEXT_BYTES))
    return 1 / min(max(1, fitting), _MOST)


def _probe(subject: Subject, schedule: Schedule) -> tuple[int, int]:
    """Bytes that training reserves, and the GPU's."""
    if not torch.cuda.is_available():
        raise OvertoneError("PyTorch sees no GPU there; give a number.")
    teacher = subject.baseline if schedule.distillation else None
    given: dict[str, Any] = {"epochs": 1, "seed": 0, "device": "cuda", "teacher": teacher}
    for _ in Finetuning(copy.deepcopy(subject.baseline), _few(subject.data, schedule), schedule, **given):
        pass
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def _few(data: Data, schedule: Schedule) -> Data:
    """The same with training images for a few steps, repeated where there are too few for one."""
    rows = torch.arange(_STEPS * schedule.batch_size) % len(data.train)
    return dataclasses.replace(data, train=Split(images=data.train.take(rows), labels=data.train.labels[rows]))

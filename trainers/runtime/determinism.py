"""Same seed, same machine, same bits: a generator per epoch, and kernels that are not chosen by timing."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from spaces.modes import evaluation_mode, quiet

__all__ = ["deterministic_cudnn", "epoch_generator", "eval_mode", "seeded_dropout"]


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """Return the generator of one epoch on a device; an epoch can run again without the epochs before it.

    The seed is hashed because the CPU's generator reads only its low 32 bits.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


@contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Run CUDA's convolutions without kernels that are chosen by timing or add in varying order; no effect on a CPU."""
    cudnn = torch.backends.cudnn
    former = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = former


@contextmanager
def seeded_dropout(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global state, from which dropout and stochastic depth draw, and restore it afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    cuda = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), quiet():
        torch.manual_seed(seed)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, deterministic and without gradients; restore each module's mode afterwards."""
    with evaluation_mode(model), deterministic_cudnn():
        yield

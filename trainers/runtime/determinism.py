"""Same seed, same machine, same bits: generators per epoch, and kernels that do not choose by timing."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["epoch_generator", "deterministic_cudnn", "seeded_dropout"]


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The generator of one epoch on a device; an epoch can be run again without the epochs before it.

    The seed is hashed because the CPU's generator reads only the low 32 bits of what it is given.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


@contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """CUDA's convolutions without those that are chosen by timing or add in varying order; no effect on a CPU."""
    cudnn = torch.backends.cudnn
    former = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = former


@contextmanager
def seeded_dropout(generator: torch.Generator) -> Iterator[None]:
    """Dropout and stochastic depth draw from torch's global state alone: seed it here, give it back after."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    cuda = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield

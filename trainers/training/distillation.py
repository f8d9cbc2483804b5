"""The uncompressed network as a teacher, whose outputs are cached for trainings that see the same images again.

All trials of a study share a seed, so they draw the same augmented images in the same order. The first one writes its
teacher's outputs at the end of each epoch, and the others read them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from spaces import state_sha256
from trainers.runtime.cache import read_cached, write_cached
from trainers.runtime.cuda_graphs import ForwardFn, maybe_cuda_graph

__all__ = ["Teacher"]

_OUTPUTS = "outputs"


class Teacher:
    """The outputs of a copy of a network for batches (n, C, H, W), in evaluation mode and without gradients."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.sha256 = state_sha256(model)
        """SHA-256 of the weights."""
        self._model = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).eval()
        self._forward: ForwardFn = maybe_cuda_graph(self._model, device)
        self._cached: Tensor | None = None
        self._computed: list[Tensor] | None = None
        self._position = 0

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs (n, classes) for the next batch, cached ones if `epoch` has them."""
        start = self._position
        self._position += len(images)
        if self._cached is not None:
            cached = self._cached[start : self._position]
            if start or torch.equal(cached, self._model(images)):
                return cached
            self._cached = None
            self._computed = []
        outputs = self._forward(images)
        if self._computed is not None:
            self._computed.append(outputs.clone())  # recorded passes overwrite it with the next ones
        return outputs

    @contextmanager
    def epoch(self, key: str | None, images: int) -> Iterator[None]:
        """Run an epoch whose batches come in order, `images` images in all, with the outputs cached under the key.

        Cached outputs are used only if those of the first batch come out the same to the bit, so another machine,
        number of threads or version of the code cannot change what is learned. Without a key nothing is cached.
        """
        self._position = 0
        self._cached = None
        self._computed = None
        if key is not None:
            entry = read_cached(key)
            outputs = None if entry is None else entry[0].get(_OUTPUTS)
            if outputs is not None and len(outputs) == images:
                self._cached = outputs.to(self.device)
            else:
                self._computed = []
        yield
        if key is not None and self._computed is not None and self._position == images:
            with suppress(OSError):
                write_cached(key, {_OUTPUTS: torch.cat(self._computed).cpu()}, {})
        self._cached = None
        self._computed = None

    def release(self) -> None:
        """Free the memory of recorded passes and cached outputs; from now on the network runs for every batch."""
        self._forward = self._model
        self._cached = None
        self._computed = None

"""CUDA graphs: the passes of a small network through a GPU, each as one launch.

A GPU finishes a small network's kernels before Python has launched the next ones. Recorded once
(`torch.cuda.make_graphed_callables`), the forward and the backward pass are launched whole, the same kernels on the
same numbers. Weights may only change in place, and no other thread may use the GPU while a pass is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from layers.errors import OvertoneWarning, first_line

__all__ = ["ForwardFn", "graph_bytes", "maybe_cuda_graph"]

_DEVICES = ("cuda",)
_SMALL = 2**30
"""Bytes; a forward pass that holds more is not recorded: a graph keeps its memory to itself, and the launch of a large
kernel is hidden behind the kernel before it."""

ForwardFn = Callable[[Tensor], Tensor]
"""A function from a batch to its outputs: a network, or its recorded passes."""


def maybe_cuda_graph(network: nn.Module, device: torch.device) -> ForwardFn:
    """Return the network as a function of a batch (B, C, H, W); on a GPU the passes of a small network are recorded.

    The first batch runs unrecorded. When its shape comes again the pass is recorded, with autocast and mode as they are
    then. Batches of other shapes are never recorded, and none is if recording fails, which is a warning. A gradient
    must be used before the next backward pass, which overwrites it, so gradients cannot add up.
    """
    return _GraphedForward(network) if device.type in _DEVICES else network


def graph_bytes(activations: int, device: torch.device) -> int:
    """Return the bytes that a recorded pass with this many bytes of activations keeps, 0 if it is not recorded."""
    return activations if device.type in _DEVICES and activations <= _SMALL else 0


class _GraphedForward:
    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shape: torch.Size | None = None
        self._replay: ForwardFn | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self._shape is None:
            self._shape = images.shape
            return self._run_and_measure(images)
        if images.shape != self._shape:
            outputs: Tensor = self._network(images)
            return outputs
        if self._replay is None:
            self._replay = self._record(images)
        return self._replay(images)

    def _run_and_measure(self, images: Tensor) -> Tensor:
        """Run unrecorded, and find out whether the network is small."""
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        outputs: Tensor = self._network(images)
        if torch.cuda.max_memory_allocated(images.device) - before > _SMALL:
            self._replay = self._network
        return outputs

    def _record(self, images: Tensor) -> ForwardFn:
        """Return the passes as graphs, and undo what recording does to the norms' statistics and random state.

        Autocast is entered inside: around everything it would apply to the backward pass too.
        """
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        wrapper = _Wrapper(self._network, dtype)
        before = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        try:
            with (
                torch.cuda.device_of(images),
                torch.random.fork_rng([images.device] if images.is_cuda else []),
                torch.autocast(kind, enabled=False),
            ):
                recorded = torch.cuda.make_graphed_callables(wrapper, (images.clone(),), allow_unused_input=True)
                return cast(ForwardFn, recorded)
        except RuntimeError as error:
            warnings.warn(f"training continues without CUDA graphs: {first_line(error)}", OvertoneWarning, stacklevel=2)
            return self._network
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


class _Wrapper(nn.Module):
    """A module whose `forward` recording replaces, so that the network's own stays as it is."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        # without the cache: a graph would hold on to weights that were cast before it
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            outputs: Tensor = self.network(images)
        return outputs

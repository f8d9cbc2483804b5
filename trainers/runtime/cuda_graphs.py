"""CUDA graphs: the passes of a small network through a GPU, each as one launch.

A GPU is done with a small network's kernels before Python has launched the next ones. Recorded once
(`torch.cuda.make_graphed_callables`) the forward and the backward pass are launched whole, the same kernels on the same
numbers. Weights may change in place only, and no other thread may use the GPU while a pass is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from layers.errors import OvertoneWarning

__all__ = ["ForwardFn", "graph_bytes", "maybe_cuda_graph"]

_DEVICES = ("cuda",)
_SMALL = 2**30
"""Bytes; a forward pass that holds more is not recorded, because a graph keeps its memory to itself and the launches of
large kernels are hidden behind the ones before them."""

ForwardFn = Callable[[Tensor], Tensor]
"""What gives outputs for a batch: a network, or its recorded passes."""


def maybe_cuda_graph(network: nn.Module, device: torch.device) -> ForwardFn:
    """The network as a function of a batch (B, C, H, W), on a GPU recorded where it is small.

    The first batch runs as ever; when its shape comes again the pass is recorded, with autocast and mode as they are
    then. Batches of other shapes always run as ever, and so do all where recording fails, which is warned of. A
    gradient must be used before the next backward pass, which writes in its place; so gradients cannot add up.
    """
    return _GraphedForward(network) if device.type in _DEVICES else network


def graph_bytes(activations: int, device: torch.device) -> int:
    """What a recorded pass that saves so many bytes holds on to, 0 where none is recorded."""
    return activations if device.type in _DEVICES and activations <= _SMALL else 0


class _GraphedForward:
    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shape: torch.Size | None = None
        self._replay: ForwardFn | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self._shape is None:
            self._shape = images.shape
            return self._weighed(images)
        if images.shape != self._shape:
            outputs: Tensor = self._network(images)
            return outputs
        if self._replay is None:
            self._replay = self._record(images)
        return self._replay(images)

    def _weighed(self, images: Tensor) -> Tensor:
        """Run as ever, and settle whether the network is small."""
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        outputs: Tensor = self._network(images)
        if torch.cuda.max_memory_allocated(images.device) - before > _SMALL:
            self._replay = self._network
        return outputs

    def _record(self, images: Tensor) -> ForwardFn:
        """The passes as graphs; what recording's own passes do to the norms' statistics and to random draws is undone.

        Autocast is entered inside: around the whole it would hold for the backward pass too.
        """
        kind = images.device.type
        alone = _Alone(self._network, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        before = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        try:
            with (
                torch.cuda.device_of(images),
                torch.random.fork_rng([images.device] if images.is_cuda else []),
                torch.autocast(kind, enabled=False),
            ):
                recorded = torch.cuda.make_graphed_callables(alone, (images.clone(),), allow_unused_input=True)
                return cast(ForwardFn, recorded)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            warnings.warn(f"training goes on without CUDA graphs: {why}", OvertoneWarning, stacklevel=2)
            return self._network
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


class _Alone(nn.Module):
    """Recording replaces this module's `forward`, so that the network itself stays what it is."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        # without the cache: a graph would hold on to weights that were cast before it
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            outputs: Tensor = self.network(images)
        return outputs

"""How many bytes tensors take: those that are held, that wait for a backward pass, or that are there at a time.

The memory that several tensors share counts once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["storage_bytes", "peak_bytes", "saved_bytes"]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of the memory that the tensors lie in."""
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


def saved_bytes(forward: Callable[[], torch.Tensor], *, besides: Sequence[torch.Tensor] = ()) -> int:
    """Of what autograd saves while `forward` runs, apart from what is held anyway (`besides`: the weights)."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)  # what is kept here until it is counted gives its memory to no other
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return storage_bytes([*saved, *besides]) - storage_bytes(besides)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that tensors made by `call` hold at a time, without what a single operator needs while it runs."""
    with _Watch() as watch:
        call()
    return watch.most


class _Watch(TorchDispatchMode):
    """Sees every operator's results come, and their memory go."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and count what it made: neither views of what it was given nor what it changed in place."""
        given = {id(storage) for storage in _storages([args, kwargs])}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in given and id(storage) not in self._alive:
                self._now += storage.nbytes()
                self._alive[id(storage)] = weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.most = max(self.most, self._now)
        return result

    def _forget(self, key: int, nbytes: int) -> None:
        del self._alive[key]
        self._now -= nbytes


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]

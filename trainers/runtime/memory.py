"""Bytes that a process may still take, and bytes that tensors take: held, saved for a backward pass, or at their peak.

Memory that several tensors share counts once.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["available_bytes", "peak_bytes", "saved_bytes", "storage_bytes"]


def available_bytes() -> int:
    """Return the bytes that this process may still take: the machine's, or what a container (cgroup v2) has left."""
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_number(group / "memory.max")
    return free if limit is None else min(free, limit - (_read_number(group / "memory.current") or 0))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of the memory that the tensors are in."""
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


def saved_bytes(forward: Callable[[], torch.Tensor], *, besides: Sequence[torch.Tensor] = ()) -> int:
    """Return the size of what autograd saves while `forward` runs, except for `besides`, held anyway: the weights."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)  # held until it is counted, so that no other tensor gets its memory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return storage_bytes([*saved, *besides]) - storage_bytes(besides)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most that tensors made by `call` hold at a time, without the workspace of single operators."""
    with _MemoryWatch() as watch:
        call()
    return watch.peak


class _MemoryWatch(TorchDispatchMode):
    """Sees every operator's results appear, and their memory freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count its new memory: neither views of its inputs nor what it changed in place."""
        inputs = {id(storage) for storage in _storages([args, kwargs])}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in inputs and id(storage) not in self._alive:
                self._current += storage.nbytes()
                self._alive[id(storage)] = weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.peak = max(self.peak, self._current)
        return result

    def _forget(self, key: int, nbytes: int) -> None:
        del self._alive[key]
        self._current -= nbytes


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _read_number(path: Path) -> int | None:
    """Return the number in a one-number file, None if it has none ('max' means no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

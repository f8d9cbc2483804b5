"""What is known of a trial's latency, as plain data: how long, and where it was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from trainers.runtime.runtimes import DEFAULT_RUNTIME, DEFAULT_THREADS

if TYPE_CHECKING:
    import torch

__all__ = ["LATENCY", "Latency", "Place"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where latencies are taken: they can be compared if all of it is equal."""

    latency_runtime: str
    latency_threads: int | None
    """CPU threads, None on a GPU."""
    latency_device: str
    """What the processor or GPU is called."""

    @classmethod
    def of(cls, runtime: str, threads: int | None, device: torch.device | str) -> Place:
        """Return the place of a runtime; PyTorch's is the device, that of files the CPU.

        Without `threads` PyTorch has those of this process, and files have `DEFAULT_THREADS`.
        """
        import torch

        from trainers.runtime.device import device_name

        used = torch.device(device if runtime == DEFAULT_RUNTIME else "cpu")
        count = threads or (torch.get_num_threads() if runtime == DEFAULT_RUNTIME else DEFAULT_THREADS)
        return cls(
            latency_runtime=runtime,
            latency_threads=count if used.type == "cpu" else None,
            latency_device=device_name(used),
        )

    def has_latency(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the ledger has a latency, and it was taken here."""
        known = None not in (row["latency_ms"], row["latency_b64_ms"])
        return known and all(row[name] == value for name, value in asdict(self).items())


@dataclass(frozen=True, kw_only=True)
class Latency(Place):
    """Median times of a pass over 1 image and over 64, and where they were taken."""

    latency_ms: float
    latency_b64_ms: float


LATENCY = tuple(field.name for field in fields(Latency))
"""The columns of the ledger about it."""

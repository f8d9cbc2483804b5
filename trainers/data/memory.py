"""Whether a decoded set of images fits in memory, asked before anything is decoded."""

import os
from pathlib import Path

from layers.errors import OvertoneError

__all__ = ["available_bytes", "check_memory"]


def available_bytes() -> int:
    """Bytes that this process may still take: the machine's, or what a container (cgroup v2) leaves of its limit."""
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(group / "memory.max")
    return free if limit is None else min(free, limit - (_number(group / "memory.current") or 0))


def check_memory(name: str, images: int, image_bytes: int) -> None:
    """Raise OvertoneError where so many decoded images (image_bytes each) would not fit."""
    needed, free = images * image_bytes, available_bytes()
    if needed > free:
        raise OvertoneError(
            f"the {images:,} decoded images of {name!r} take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory "
            f"are available; --stream decodes training images as they are needed, --train-limit keeps fewer."
        )


def _number(path: Path) -> int | None:
    """What a one-number file holds, None where there is none ('max' means no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

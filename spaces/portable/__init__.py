"""Packed models in the formats of other runtimes."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from spaces.portable.formats import FORMATS, PLAIN, WriteOptions, check_format, shared_graphs, write
    from spaces.portable.program import StoredNetwork
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "spaces.portable.formats": ("FORMATS", "PLAIN", "WriteOptions", "check_format", "shared_graphs", "write"),
            "spaces.portable.program": ("StoredNetwork",),
        },
    )

__all__ = [
    "FORMATS",
    "PLAIN",
    "StoredNetwork",
    "WriteOptions",
    "check_format",
    "shared_graphs",
    "write",
]

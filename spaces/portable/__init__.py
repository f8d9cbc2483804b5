"""Packed models in the formats of other runtimes."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from spaces.portable.formats import FORMATS, PLAIN, WriteOptions, check_format, write
    from spaces.portable.network import PortableRounding, portable_model
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "spaces.portable.formats": ("FORMATS", "PLAIN", "WriteOptions", "check_format", "write"),
            "spaces.portable.network": ("PortableRounding", "portable_model"),
        },
    )

__all__ = [
    "FORMATS",
    "PLAIN",
    "PortableRounding",
    "WriteOptions",
    "check_format",
    "portable_model",
    "write",
]

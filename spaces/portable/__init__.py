"""Packed models in the formats of other runtimes."""

from spaces.portable.formats import FORMATS, check_format, write
from spaces.portable.network import PortableRounding, portable_model

__all__ = ["FORMATS", "PortableRounding", "check_format", "portable_model", "write"]

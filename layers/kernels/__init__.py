"""How our C and CUDA kernels are compiled and loaded."""

from pathlib import Path

__all__ = ["CSRC"]

CSRC = Path(__file__).parents[1] / "csrc"
"""The folder of their sources."""

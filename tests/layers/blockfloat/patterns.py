import math

import torch
from torch import Tensor

BIT_PATTERNS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
"""The types that kernels round, and as what their bits can be compared."""


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one type are the same to the bit, but for NaN, of which PyTorch's casts make several."""
    kind, nan = BIT_PATTERNS[expected.dtype], expected.isnan()
    one, other = (x.masked_fill(nan, 0.0).view(kind) for x in (found, expected))
    return found.dtype == expected.dtype and torch.equal(found.isnan(), nan) and torch.equal(one, other)


def any_pattern(generator: torch.Generator, *shape: int) -> Tensor:
    """Float32 values of all exponents, subnormals, infinities and NaN among them."""
    values = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32).view(torch.float32)
    few = torch.rand(shape, generator=generator)
    ordinary = torch.randn(shape, generator=generator)
    values = torch.where(few < 0.9, ordinary, values)
    for edge in (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 2.0**-64, 2.0**64):
        values[torch.rand(shape, generator=generator) < 0.002] = edge
    return values

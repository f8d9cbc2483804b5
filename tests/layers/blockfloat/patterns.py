import math

import torch
from torch import Tensor


def any_pattern(generator: torch.Generator, *shape: int) -> Tensor:
    """Float32 values of all exponents, subnormals, infinities and NaN among them."""
    values = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32).view(torch.float32)
    few = torch.rand(shape, generator=generator)
    ordinary = torch.randn(shape, generator=generator)
    values = torch.where(few < 0.9, ordinary, values)
    for edge in (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 2.0**-64, 2.0**64):
        values[torch.rand(shape, generator=generator) < 0.002] = edge
    return values

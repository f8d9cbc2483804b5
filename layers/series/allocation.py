"""Harmonics of each filter's own: a layer's coefficients allocated to the filters that gain most from them.

Costain & Prisacariu leave a different number of harmonics for each filter to future work. Ours: filter f has
(n_y, n_x)_f harmonics, its support. The sum of n_y n_x over the filters is what it would be if all had the layer's
`harmonics`, so there are as many coefficients; only the supports are stored besides, in as few bits as tell the K_y K_x
possible ones apart. Given each filter's error with each support, the best supports are found exactly, by dynamic
programming over filters and coefficients spent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import OvertoneError

__all__ = ["allocate", "allocated_mix", "expand_coefficients", "index_supports", "support_mask", "supports"]


def supports(kernel: tuple[int, int]) -> list[tuple[int, int]]:
    """Return all harmonics (n_y, n_x) that a filter of these taps can have; a support is an index into this list."""
    return [(y, x) for y in range(1, kernel[0] + 1) for x in range(1, kernel[1] + 1)]


def allocate(errors: Tensor, kernel: tuple[int, int], budget: int) -> Tensor:
    """Return the supports, (N,) int64, of least total error with exactly `budget` coefficients a channel.

    `errors` (N, K_y K_x) are finite. Of equal totals the one that is found first counts. Takes time N x budget x the
    number of different products n_y n_x. Raises `OvertoneError` if no supports make the budget.
    """
    table = errors.detach().double().cpu().numpy()
    costs = np.array([y * x for y, x in supports(kernel)])
    least = np.full(budget + 1, np.inf)  # total error of the filters so far, by coefficients spent
    least[0] = 0.0
    last_support = np.zeros((len(table), budget + 1), dtype=np.int16)
    for filter, row in enumerate(table):
        total = np.full(budget + 1, np.inf)
        for support in _best_of_each_cost(row, costs):
            cost = costs[support]
            candidate = least[: max(budget + 1 - cost, 0)] + row[support]
            better = candidate < total[cost:]
            total[cost:][better] = candidate[better]
            last_support[filter, cost:][better] = support
        least = total
    if not np.isfinite(least[budget]):
        raise OvertoneError(f"{len(table)} filters of {kernel} taps cannot have {budget} coefficients a channel")
    chosen = np.zeros(len(table), dtype=np.int64)
    remaining = budget
    for filter in reversed(range(len(table))):
        chosen[filter] = last_support[filter, remaining]
        remaining -= costs[chosen[filter]]
    return torch.from_numpy(chosen).to(errors.device)


def _best_of_each_cost(row: np.ndarray, costs: np.ndarray) -> list[int]:
    order = np.lexsort((row, costs))
    return [int(support) for support in order[np.unique(costs[order], return_index=True)[1]]]


def index_supports(frequency_support: Tensor, kernel: tuple[int, int], budget: int) -> Tensor:
    """Return where each stored row of coefficients stands among (N, K_y, K_x), flattened: (budget,) int64, ascending.

    Raises `OvertoneError` if the supports are not of these taps or do not make the budget.
    """
    k_y, k_x = kernel
    if len(frequency_support) and int(frequency_support.max()) >= k_y * k_x:
        raise OvertoneError(f"a filter's support (={int(frequency_support.max())}) must be below {k_y * k_x}")
    supported = support_mask(frequency_support, kernel)
    if (count := int(supported.sum())) != budget:
        raise OvertoneError(f"the filters' supports make {count} coefficients a channel, not {budget}")
    return supported.nonzero().squeeze(1)


def support_mask(frequency_support: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Return which harmonics the filters have, of (N, K_y, K_x), flattened, bool."""
    k_y, k_x = kernel
    last = frequency_support.long()[:, None, None]
    y = torch.arange(k_y, device=last.device)[:, None]
    x = torch.arange(k_x, device=last.device)
    return ((y <= last // k_x) & (x <= last % k_x)).flatten()


def expand_coefficients(stored: Tensor, support_index: Tensor, filters: int, kernel: tuple[int, int]) -> Tensor:
    """Return the coefficients (N, C, K_y, K_x) of the stored rows (budget, C), zero outside the supports."""
    grid = stored.new_zeros(filters * kernel[0] * kernel[1], stored.shape[1])
    return grid.index_copy(0, support_index, stored).view(filters, *kernel, -1).permute(0, 3, 1, 2)


def allocated_mix(responses: Tensor, coefficients: Tensor, frequency_support: Tensor) -> Tensor:
    """Mix basis responses (B, C K_y K_x, H, W), harmonic by harmonic, into the filters whose supports hold it.

    Coefficients are (N, C, K_y, K_x), supports (N,), outputs (B, N, H, W). Takes H W C times the number of coefficients
    a channel in multiply-accumulates.
    """
    filters, channels, k_y, k_x = coefficients.shape
    by_harmonic = responses.unflatten(1, (channels, k_y * k_x))
    mixed = responses.new_zeros(len(responses), filters, *responses.shape[2:])
    for harmonic in range(k_y * k_x):
        y, x = divmod(harmonic, k_x)
        users = ((frequency_support // k_x >= y) & (frequency_support % k_x >= x)).nonzero().squeeze(1)
        if len(users):
            weight = coefficients[users, :, y, x, None, None]
            mixed = mixed.index_add(1, users, F.conv2d(by_harmonic[:, :, harmonic], weight))
    return mixed

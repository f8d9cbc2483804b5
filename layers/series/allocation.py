"""Harmonics of each filter's own: a layer's coefficients spent across its filters where they buy most.

Costain & Prisacariu leave a different number of harmonics for each filter to future work. Ours: filter f takes
(n_y, n_x)_f harmonics, its support, with sum n_y n_x over the filters what it would be if all had the layer's
`harmonics`; so the coefficients are as many, and only the supports are stored besides, in as few bits as tell the
K_y K_x possible ones apart. Given each filter's error with each support, the best supports are found exactly, by
dynamic programming over filters and coefficients spent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import OvertoneError

__all__ = ["allocate", "allocated_mix", "expand_coefficients", "support_bits", "support_slots", "supports"]


def supports(kernel: tuple[int, int]) -> list[tuple[int, int]]:
    """All harmonics (n_y, n_x) a filter of these taps can have; a support is a place in this list."""
    return [(y, x) for y in range(1, kernel[0] + 1) for x in range(1, kernel[1] + 1)]


def support_bits(kernel: tuple[int, int]) -> int:
    """Bits that tell the supports apart."""
    return max(1, (kernel[0] * kernel[1] - 1).bit_length())


def allocate(errors: Tensor, kernel: tuple[int, int], budget: int) -> Tensor:
    """The support of each filter, int64 (N,), of least total error with exactly `budget` coefficients a channel.

    `errors` (N, K_y K_x) are finite. Of equal totals the one that is found first counts. Time N x budget x the number
    of different products n_y n_x.
    """
    table = errors.detach().double().cpu().numpy()
    costs = np.array([y * x for y, x in supports(kernel)])
    best = np.full(budget + 1, np.inf)
    best[0], taken = 0.0, np.zeros((len(table), budget + 1), dtype=np.int16)
    for filter, row in enumerate(table):
        total = np.full(budget + 1, np.inf)
        for support in _cheapest_of_each_cost(row, costs):
            cost = costs[support]
            offered = best[: max(budget + 1 - cost, 0)] + row[support]
            better = offered < total[cost:]
            total[cost:][better], taken[filter, cost:][better] = offered[better], support
        best = total
    if not np.isfinite(best[budget]):
        raise OvertoneError(f"{len(table)} filters of {kernel} taps cannot take {budget} coefficients a channel.")
    chosen, left = np.zeros(len(table), dtype=np.int64), budget
    for filter in reversed(range(len(table))):
        chosen[filter] = taken[filter, left]
        left -= costs[chosen[filter]]
    return torch.from_numpy(chosen).to(errors.device)


def _cheapest_of_each_cost(row: np.ndarray, costs: np.ndarray) -> list[int]:
    order = np.lexsort((row, costs))
    return [int(place) for place in order[np.unique(costs[order], return_index=True)[1]]]


def support_slots(chosen: Tensor, kernel: tuple[int, int], budget: int) -> Tensor:
    """Where each stored coefficient row stands among (N, K_y, K_x), flattened: int64 (budget,), in order.

    Raises `OvertoneError` where the supports are not of these taps or do not make the budget.
    """
    (k_y, k_x), chosen = kernel, chosen.long()
    if len(chosen) and int(chosen.max()) >= k_y * k_x:
        raise OvertoneError(f"A filter's support (={int(chosen.max())}) must be below {k_y * k_x}.")
    y, x = torch.arange(k_y, device=chosen.device)[:, None], torch.arange(k_x, device=chosen.device)
    inside = (y <= (chosen // k_x)[:, None, None]) & (x <= (chosen % k_x)[:, None, None])
    slots = inside.flatten().nonzero().squeeze(1)
    if len(slots) != budget:
        raise OvertoneError(f"The filters' supports make {len(slots)} coefficients a channel, not {budget}.")
    return slots


def expand_coefficients(stored: Tensor, slots: Tensor, filters: int, kernel: tuple[int, int]) -> Tensor:
    """Coefficients (N, C, K_y, K_x) of the stored rows (budget, C), zero outside of the supports."""
    grid = stored.new_zeros(filters * kernel[0] * kernel[1], stored.shape[1])
    return grid.index_copy(0, slots, stored).view(filters, *kernel, -1).permute(0, 3, 1, 2)


def allocated_mix(responses: Tensor, coefficients: Tensor, chosen: Tensor) -> Tensor:
    """Mix basis responses (B, C K_y K_x, H, W), harmonic by harmonic, into the filters whose supports hold it.

    Coefficients are (N, C, K_y, K_x), supports (N,), output (B, N, H, W). Multiply-accumulates: H W C times the number
    of coefficients a channel.
    """
    filters, channels, k_y, k_x = coefficients.shape
    by_harmonic = responses.unflatten(1, (channels, k_y * k_x))
    mixed = responses.new_zeros(len(responses), filters, *responses.shape[2:])
    for place in range(k_y * k_x):
        y, x = divmod(place, k_x)
        users = ((chosen // k_x >= y) & (chosen % k_x >= x)).nonzero().squeeze(1)
        if len(users):
            weight = coefficients[users, :, y, x, None, None]
            mixed = mixed.index_add(1, users, F.conv2d(by_harmonic[:, :, place], weight))
    return mixed

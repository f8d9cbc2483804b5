"""Effects of single blocks as a study measures them, for benchmarks: seconds are those of the processor."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from torch import nn

from layers import OvertoneError
from spaces import BlockConfig, Network
from spaces.effects import Effects
from trainers.data import Data
from trainers.effects import EffectMeter

__all__ = ["measured_effects"]


def measured_effects(
    planned: Iterable[tuple[str, BlockConfig]],
    data: Data,
    baseline: nn.Module,
    network: Network,
    *,
    minimum_templates: int,
    seed: int,
) -> Effects:
    """Return the effects of these forms of blocks; one that cannot be measured has none."""
    started = time.process_time()
    meter = EffectMeter(data, baseline, network, minimum_templates=minimum_templates, seed=seed)
    library = replace(meter.reference, reference_s=time.process_time() - started)
    for block, config in planned:
        started = time.process_time()
        with suppress(OvertoneError):
            effect = replace(meter.measure(block, config), seconds=time.process_time() - started)
            library = replace(library, effects=(*library.effects, effect))
    return library

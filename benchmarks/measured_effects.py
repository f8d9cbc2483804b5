"""Effects of single blocks as a study measures them, for benchmarks: seconds are those of the processor."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from torch import nn

from layers import OvertoneError
from search.optimize.effect_plan import effect_plan
from spaces import BlockConfig, Space
from spaces.effects import Effects
from trainers.data import Data
from trainers.effects import EffectMeter

__all__ = ["measured_effects"]


def measured_effects(space: Space, data: Data, baseline: nn.Module, *, count: int, seed: int = 0) -> Effects:
    """Return the first `count` effects of the plan of a space; a form that cannot be measured has none."""
    started = time.process_time()
    meter = EffectMeter(data, baseline, space.network, minimum_templates=space.minimum_templates, seed=seed)
    library = replace(meter.reference, reference_s=time.process_time() - started)
    planned: Iterator[tuple[str, BlockConfig]] = islice(effect_plan(space), count)
    for block, config in planned:
        started = time.process_time()
        with suppress(OvertoneError):
            effect = replace(meter.measure(block, config), seconds=time.process_time() - started)
            library = replace(library, effects=(*library.effects, effect))
    return library

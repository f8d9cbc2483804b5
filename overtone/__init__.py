"""Overtone: the best trade-offs between accuracy, size and compute that a trained CNN can be compressed to.

study = overtone.create_study("demo", model=net, data=(images, labels))
study.optimize(n_trials=100)
study.best(max_size="100kB").export("out")
"""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from search.api.compress import compress
    from search.api.create import create_study, load_study
    from search.api.study import Study
    from search.api.trial import Trial
    from spaces.packed import load_model
    from trainers.runtime.bench import bench
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "search.api.compress": ("compress",),
            "search.api.create": ("create_study", "load_study"),
            "search.api.study": ("Study",),
            "search.api.trial": ("Trial",),
            "spaces.packed": ("load_model",),
            "trainers.runtime.bench": ("bench",),
        },
    )

__all__ = ["Study", "Trial", "bench", "compress", "create_study", "load_model", "load_study"]

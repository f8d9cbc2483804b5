"""Searching: which config to try next, trials on Ray, exports, and the command line."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from search.api.compress import compress
    from search.api.create import create_study, load_study
    from search.api.study import Interrupted, Study
    from search.api.trial import Trial
    from search.runner.cluster import Resources
    from search.runner.dashboards import DashboardOptions
    from search.study.plan import StudyPlan
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "search.api.compress": ("compress",),
            "search.api.create": ("create_study", "load_study"),
            "search.api.study": ("Interrupted", "Study"),
            "search.api.trial": ("Trial",),
            "search.runner.cluster": ("Resources",),
            "search.runner.dashboards": ("DashboardOptions",),
            "search.study.plan": ("StudyPlan",),
        },
    )

__all__ = [
    "DashboardOptions",
    "Interrupted",
    "Resources",
    "Study",
    "StudyPlan",
    "Trial",
    "compress",
    "create_study",
    "load_study",
]

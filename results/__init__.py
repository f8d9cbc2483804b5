"""The ledger of trials and everything that is made from it: fronts, statistics, queries, reports, figures, exports."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from results.export.export import export_model
    from results.ledger.ledger import Ledger
    from results.ledger.store import Store
    from results.objectives import Objective
    from results.pareto.front import front
    from results.pareto.hypervolume import hypervolume
    from results.queries.formats import serialize
    from results.queries.query import query, sql
    from results.report.plot import plot_front
    from results.report.report import write_report
    from results.schema import TrialRow, TrialStatus
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "results.export.export": ("export_model",),
            "results.ledger.ledger": ("Ledger",),
            "results.ledger.store": ("Store",),
            "results.objectives": ("Objective",),
            "results.pareto.front": ("front",),
            "results.pareto.hypervolume": ("hypervolume",),
            "results.queries.formats": ("serialize",),
            "results.queries.query": ("query", "sql"),
            "results.report.plot": ("plot_front",),
            "results.report.report": ("write_report",),
            "results.schema": ("TrialRow", "TrialStatus"),
        },
    )

__all__ = [
    "Ledger",
    "Objective",
    "Store",
    "TrialRow",
    "TrialStatus",
    "export_model",
    "front",
    "hypervolume",
    "plot_front",
    "query",
    "serialize",
    "sql",
    "write_report",
]

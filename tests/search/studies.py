"""Studies of a plan, run and asked by the Python interface."""

from pathlib import Path
from typing import Any

from rich.console import Console

from results.ledger.ledger import Ledger
from search.api.create import begin_study
from search.api.study import Study
from search.runner.cluster import Resources
from search.runner.confirm import RepeatResult
from search.runner.dashboards import DashboardOptions
from search.runner.launch import SearchResult
from search.study.objects import NO_OBJECTS
from search.study.plan import StudyPlan

__all__ = ["confirm_trials", "export_trial", "resume_study", "start_study"]


def start_study(
    ledger: Ledger,
    name: str,
    plan: StudyPlan,
    resources: Resources,
    console: Console | None = None,
    dashboards: DashboardOptions | None = None,
) -> SearchResult:
    study = begin_study(ledger, name, plan, NO_OBJECTS, progress=False)
    return study.optimize(resources=resources, dashboards=dashboards)


def resume_study(
    ledger: Ledger,
    name: str,
    more: int | None,
    resources: Resources,
    console: Console | None = None,
    dashboards: DashboardOptions | None = None,
) -> SearchResult:
    return Study(ledger, name).optimize(more=more, resources=resources, dashboards=dashboards)


def confirm_trials(
    ledger: Ledger, name: str, which: str, *, where: str | None, seeds: int, resources: Resources
) -> RepeatResult:
    return Study(ledger, name).confirm(seeds, pick=which, where=where, resources=resources)


def export_trial(ledger: Ledger, name: str, which: str, *, where: str | None, format: str, out: Path) -> dict[str, Any]:
    return Study(ledger, name).pick(which, where).export(out, format)

"""Rows of other studies, in the blocks of the study that reuses them."""

import dataclasses
from collections.abc import Callable

from results.ledger.ledger import Ledger
from search.runner.launch import create_study
from search.study.plan import StudyPlan
from search.study.record import network_config
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from spaces.blocks import Granularity


def test_a_warm_start_is_spelled_in_the_studys_own_blocks(
    ledger: Ledger, plan: StudyPlan, run_alone: Callable[[StudyPlan], str]
) -> None:
    stages = run_alone(plan)
    granularities: list[tuple[str, str, Granularity]] = [(stages, "w", "layer"), ("w", "back", "stage")]
    for source, name, granularity in granularities:
        warm = dataclasses.replace(plan, granularity=granularity, warm_start=(source,))
        create_study(StudyLedger(ledger, name), warm, Workload.load(warm))
    of_stages, of_layers, back = (ledger.trials(name).to_pylist() for name in (stages, "w", "back"))
    assert len(of_stages) == len(of_layers) == len(back) == 1
    layers = [block["block"] for block in of_layers[0]["blocks"]]
    assert layers == list(network_config(of_layers[0]).blocks)
    assert all(block.startswith("layer3.") for block in layers)
    assert set(layers) <= ledger.study("w")["choices"].keys()
    assert of_layers[0]["spec_digest"] == of_stages[0]["spec_digest"]
    assert of_layers[0]["config_digest"] == of_stages[0]["config_digest"]
    assert back[0]["blocks"] == of_stages[0]["blocks"]

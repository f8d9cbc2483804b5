"""Rounding that knows the outputs against rounding each value: accuracy before training and after a few epochs.

    python benchmarks/output_rounding.py --data CIFAR10-FOLDER --weights RESNET20.safetensors [--seeds 3]

Trials are those of `resnet20_trials.py`. Both sides have the same form, so the same bytes, the same calibration images
and norms re-estimated on them; series and templates are fitted to outputs in both. `values` rounds each value to its
nearest; `outputs` is the calibrated start (`layers.calibration.rounding`). Seconds are those of the start, with as
many runs at a time as are told. Writes output_rounding.md beside the table of all runs (output_rounding.parquet);
`--epochs 0` trains nothing, in minutes.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from resnet20_trials import Run, about, parser, run_trials

from spaces import BlockConfig, NetworkConfig

_BLOCKS = ("conv1", "layer1", "layer2", "layer3", "linear")
_SERIES = {"basis": "cosine", "harmonics": (2, 2), "allocation": "filter"}
_FILTERS: dict[str, dict[str, Any]] = {"as it was": {}, "2 x 2 per filter": _SERIES, "rate 0.5": {"pruning_rate": 0.5}}
_FORMS = [*product(("as it was",), (3, 2, 1)), *product(("2 x 2 per filter", "rate 0.5"), (2,))]


def main() -> None:
    """Run what is missing, then write the comparison."""
    arguments = parser(__doc__).parse_args()
    keys = product(range(arguments.seeds), _FORMS, ("values", "outputs"))
    runs: list[Run] = [
        {"filters": filters, "bits": bits, "rounding": rounding, "epochs": arguments.epochs, "seed": seed}
        for seed, (filters, bits), rounding in keys
    ]
    run_trials(arguments, "output_rounding", runs, _config, _write)
    print((arguments.out / "output_rounding.md").read_text())


def _config(run: Run) -> NetworkConfig:
    plain = {"bits": run["bits"], "exponent_block": 16}
    blocks = {
        block: BlockConfig(**plain, **({} if block == "linear" else _FILTERS[run["filters"]])) for block in _BLOCKS
    }
    return NetworkConfig(blocks=blocks)


def _write(rows: pd.DataFrame, out: Path) -> None:
    before, after = ((rows[f"{when}_val"] + rows[f"{when}_test"]) / 2 for when in ("pre", "post"))
    rows = rows.assign(before=before, after=after.where(rows.epochs > 0))
    lines = ["# Rounding that knows the outputs, ResNet-20", ""]
    lines += [f"{about(rows)} In blocks of 16; all columns are of 10,000 images, with the standard deviation.", ""]
    lines += [
        "| filters | bits | kB | rounding | n | before | epochs | after | start, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (filters, bits, rounding, epochs), same in rows.groupby(["filters", "bits", "rounding", "epochs"]):
        cells = [filters, str(bits), f"{same.size_bytes.iloc[0] / 1000:.1f}", rounding, str(len(same))]
        cells += [_mean(same.before), str(epochs), _mean(same.after), f"{same.start_s.mean():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    (out / "output_rounding.md").write_text("\n".join([*lines, ""]))


def _mean(values: "pd.Series[float]") -> str:
    if values.isna().all():
        return ""
    return f"{values.mean():.2f}" + (f" +- {values.std():.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()

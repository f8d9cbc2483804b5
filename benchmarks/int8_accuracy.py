"""Accuracy of a fine-tuned ResNet-20 that computes in int8, against the same compressed network in float.

Filters are rounded to 8 bits with a scale a filter, activations with a scale a tensor, from the first step on
(`layers.integer`). Writes int8_accuracy.md beside the table of all runs (int8_accuracy.parquet).

    python benchmarks/int8_accuracy.py --data CIFAR10-FOLDER --weights RESNET20.safetensors --seeds 3
"""

import dataclasses
from pathlib import Path

import pandas as pd
from resnet20_trials import Run, about, accuracies, parser, run_trials

from spaces import BlockConfig, NetworkConfig

_BLOCKS = ("conv1", "layer1", "layer2", "layer3", "linear")
_FORMS = {
    "uncompressed": BlockConfig(),
    "2 x 2 harmonics, 4 bits in blocks of 16": BlockConfig(
        basis="cosine", harmonics=(2, 2), allocation="filter", bits=4, exponent_block=16
    ),
}


def main() -> None:
    """Run what is missing, then write the comparison."""
    arguments = parser(__doc__).parse_args()
    runs = [
        {"form": form, "arithmetic": arithmetic, "seed": seed}
        for seed in range(arguments.seeds)
        for form in _FORMS
        for arithmetic in ("float", "int8")
    ]
    run_trials(arguments, "int8_accuracy", runs, _config, _write)


def _config(run: Run) -> NetworkConfig:
    block = dataclasses.replace(_FORMS[run["form"]], arithmetic=run["arithmetic"])
    return NetworkConfig(blocks=dict.fromkeys(_BLOCKS, block))


def _write(rows: pd.DataFrame, out: Path) -> None:
    lines = ["# Accuracy in int8, ResNet-20", "", about(rows), ""]
    lines += ["| form | arithmetic | kB | n | before | after |", "|---|---|---|---|---|---|"]
    for form in _FORMS:
        for arithmetic in ("float", "int8"):
            same = rows[(rows.form == form) & (rows.arithmetic == arithmetic)]
            if len(same):
                size = f"{same.size_bytes.iloc[0] / 1000:.1f}"
                lines.append(f"| {' | '.join([form, arithmetic, size, str(len(same)), *accuracies(same)])} |")
    (out / "int8_accuracy.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

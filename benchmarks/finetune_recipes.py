"""Which recipe of a few epochs leaves compressed networks the most accuracy: learning rate, batch, distillation.

    python benchmarks/finetune_recipes.py --data CIFAR10-FOLDER --weights RESNET20.safetensors [--seeds 3]

Three configs written by hand, of which calibration leaves one nearly as it was, one a little and one much less
accurate, are fine-tuned as trials are, in float32. Writes finetune_recipes.md beside the table of all runs
(finetune_recipes.parquet).
"""

from itertools import product
from pathlib import Path

import pandas as pd
from resnet20_trials import Run, about, parser, run_trials
from search_real import everywhere

from spaces import NetworkConfig

_FORMS: dict[str, NetworkConfig] = {
    "2 bits": everywhere((3, 3, 3, 3), 2),
    "2 x 2 per filter, 2 bits": everywhere((2, 2, 2, 2), 2, allocation="filter"),
    "rate 0.5, 2 bits": everywhere((3, 3, 3, 3), 2, rate=0.5),
}
_RECIPES = [
    {"lr": lr, "batch_size": 64, "distillation": distillation}
    for lr, distillation in product((3e-3, 1e-2, 1e-3), (1.0, 0.5, 0.0))
]


def main() -> None:
    """Run what is missing, then write the comparison."""
    arguments = parser(__doc__).parse_args()
    runs: list[Run] = [
        {"form": form, **recipe, "precision": "fp32", "seed": seed}
        for seed, recipe, form in product(range(arguments.seeds), _RECIPES, _FORMS)
    ]
    run_trials(arguments, "finetune_recipes", runs, lambda run: _FORMS[run["form"]], _write)


def _write(rows: pd.DataFrame, out: Path) -> None:
    rows = rows.assign(before=(rows.pre_val + rows.pre_test) / 2, after=(rows.post_val + rows.post_test) / 2)
    lines = [
        "# Recipes of a few epochs, ResNet-20",
        "",
        about(rows).replace(", bfloat16", ""),
        "",
        f"| learning rate | batch | distillation | n | {' | '.join(_FORMS)} | mean |",
        f"|---|---|---|---|{'---|' * (len(_FORMS) + 1)}",
    ]
    before = rows.groupby("form").before.mean()
    lines.append(f"| not trained | | | | {' | '.join(f'{before[form]:.2f}' for form in _FORMS if form in before)} | |")
    for recipe in _RECIPES:
        same = rows[(rows[list(recipe)] == pd.Series(recipe)).all(axis=1)]
        after = same.groupby("form").after.mean().reindex(_FORMS)
        if len(same):
            settings = " | ".join(f"{value:g}" for value in recipe.values())
            cells = " | ".join("" if pd.isna(value) else f"{value:.2f}" for value in after)
            mean = "" if after.isna().any() else f"{after.mean():.2f}"
            count = same.groupby("form").size().min()
            lines.append(f"| {settings} | {count} | {cells} | {mean} |")
    (out / "finetune_recipes.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

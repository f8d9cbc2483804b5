"""Which recipe of a few epochs leaves compressed networks the most accuracy: learning rate, batch, distillation.

    python benchmarks/finetune_recipes.py --data CIFAR10-FOLDER --weights RESNET20.safetensors [--seeds 3]

Configs written by hand (`search_real.py`), one that loses little, one that loses some and one that loses much, are
fine-tuned as trials are, in float32. Writes finetune_recipes.md beside the table of all runs
(finetune_recipes.parquet).
"""

from itertools import product
from pathlib import Path

import pandas as pd
from resnet20_trials import Run, about, parser, run_trials
from search_real import hand_configs

_FORMS = ("2 x 2 per filter, 4 bits", "rate 0.5, 4 bits", "rate 0.75, 4 bits")
_RECIPES = [
    {"lr": lr, "batch_size": batch_size, "distillation": distillation}
    for lr, batch_size, distillation in [
        *product((1e-2, 3e-3), (64,), (0.0, 0.5, 1.0)),
        *product((1e-2, 3e-2), (128,), (1.0,)),
    ]
]


def main() -> None:
    """Run what is missing, then write the comparison."""
    arguments = parser(__doc__).parse_args()
    runs: list[Run] = [
        {"form": form, **recipe, "precision": "fp32", "seed": seed}
        for seed, recipe, form in product(range(arguments.seeds), _RECIPES, _FORMS)
    ]
    configs = hand_configs()
    run_trials(arguments, "finetune_recipes", runs, lambda run: configs[run["form"]], _write)


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
            cells = " | ".join(f"{value:.2f}" for value in after)
            count = same.groupby("form").size().min()
            lines.append(f"| {settings} | {count} | {cells} | {after.mean():.2f} |")
    (out / "finetune_recipes.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

"""How good the networks get that `overtone train` trains from their random start.

    python benchmarks/baselines.py --data DIR [--models resnet8 resnet20 ...] [--epochs 15] [--recipe baseline]

DIR holds images as Parquet in the Hugging Face layout (CIFAR-10, say). 10 % of the training images are held out for
validation, which chooses nothing here; test images are read once, at the end. A training that was stopped goes on from
its checkpoint. Rows are kept in `baselines.parquet`, one for each network, recipe and seed, and shown in
`baselines.md`.
"""

import argparse
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from trainers.data import Data, DataSpec, load_data
from trainers.evaluation import evaluate
from trainers.runtime.device import keep_freed_memory
from trainers.train import random_network, save_trained, train_model
from trainers.training.recipe import RECIPES

_MODELS = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "vgg16")
_KEY = ["model", "recipe", "epochs", "seed", "train_images"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20"], choices=_MODELS)
    parser.add_argument("--recipe", default="baseline", choices=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-limit", type=int, help="use fewer training images, for a look")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder for trained weights, checkpoints")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    keep_freed_memory()  # as `overtone train` does
    data = load_data(DataSpec(name=f"parquet:{arguments.data}", train_limit=arguments.train_limit))
    for model in arguments.models:
        _write(pd.DataFrame([_train(model, data, arguments)]).set_index(_KEY), arguments.out)
    print((arguments.out / "baselines.md").read_text())


def _train(model: str, data: Data, arguments: argparse.Namespace) -> dict[str, object]:
    network, recipe = random_network(model, data, seed=arguments.seed), RECIPES[arguments.recipe]
    weights = arguments.weights / f"{model}-{arguments.recipe}-{arguments.epochs}-{arguments.seed}.safetensors"
    history = train_model(
        network,
        data,
        recipe,
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        on_epoch=lambda e: print(f"{model} epoch {e.epoch}: val_top1 {e.score:.4f}, {e.seconds:.0f} s", flush=True),
        checkpoint=weights.with_suffix(".checkpoint"),
        about={"model": model},
    )
    test = evaluate(network, data.test, data.normalize, device=arguments.device)
    save_trained(network, weights, model, data, {"recipe": asdict(recipe), "val_top1": history[-1].score})
    weights.with_suffix(".checkpoint").unlink(missing_ok=True)
    return {
        "model": model,
        "recipe": arguments.recipe,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "train_images": len(data.train),
        "val_top1": 100 * history[-1].score,
        "test_top1": 100 * test.top1,
        "test_images": test.n,
        "minutes": sum(epoch.seconds for epoch in history) / 60,
        "threads": torch.get_num_threads(),
        "device": platform.processor() or arguments.device,
        "torch": version("torch"),
    }


def _write(row: pd.DataFrame, out: Path) -> None:
    path = out / "baselines.parquet"
    known = pd.read_parquet(path).set_index(_KEY) if path.exists() else row.iloc[:0]
    found = pd.concat([known[~known.index.isin(row.index)], row]).reset_index()
    found.to_parquet(path, index=False)
    lines = ["# Networks trained from their random start", ""]
    lines += ["`overtone train`'s recipes; minutes depend on what else the machine did.", ""]
    lines += [
        "| network | recipe | epochs | training images | seed | validation % | test % | minutes | threads | torch |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.model} | {r.recipe} | {r.epochs} | {r.train_images:,} | {r.seed} | {r.val_top1:.2f} | "
        f"{r.test_top1:.2f} | {r.minutes:.0f} | {r.threads} | {r.torch} |"
        for r in found.itertuples()
    ]
    (out / "baselines.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

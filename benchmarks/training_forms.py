"""What compression adds to a training step: a network in each kind of form, against the same network as it was.

    python benchmarks/training_forms.py [--device cuda] [--precision fp32] [--threads 1] [--rounds 12]

A search trains nothing but compressed networks, which build their filters in every step, and may round their inputs.
A step is forward, backward and optimizer on a ready batch of random numbers, in a process that keeps freed memory
(`trainers.runtime.device.keep_freed_memory`), as those of trials do. Every layer is in the form; weights
and inputs are rounded to five bits. Networks take turns within a round, a step that does not count before each turn;
ratios are those of medians, the range beside one is that of the rounds' own. Rows of other devices, precisions and
threads are kept in `training_forms.parquet`; writes `training_forms.md` too.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn
from turns import machine, publish, take_turns

from layers import compress_model
from spaces import BlockConfig, Network, NetworkConfig
from spaces.models import RESNET_DEPTHS, build_model
from trainers.runtime.device import keep_freed_memory, parse_device
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe

_PLAIN = "as it was"
_FORMS = {
    "series, 2 x 2 harmonics": BlockConfig(basis="cosine", harmonics=(2, 2)),
    "half rebuilt, a gain each": BlockConfig(pruning_rate=0.5, transform="scalar"),
    "half rebuilt, rotations": BlockConfig(pruning_rate=0.5, transform="rotation"),
    "half rebuilt, affine maps": BlockConfig(pruning_rate=0.5, transform="affine"),
    "bits, an exponent each": BlockConfig(bits=5, activation_bits=5),
    "bits, exponents of 16": BlockConfig(bits=5, exponent_block=16, activation_bits=5, activation_block=16),
    "series, half rebuilt, bits": BlockConfig(
        basis="cosine",
        harmonics=(2, 2),
        pruning_rate=0.5,
        transform="scalar",
        bits=5,
        exponent_block=16,
        activation_bits=5,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", choices=[f"resnet{depth}" for depth in RESNET_DEPTHS])
    parser.add_argument("--device", type=parse_device, default=torch.device("cpu"), help="cpu, cuda, cuda:1")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, help="as many as torch takes by itself, where not given")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found = _measure(arguments)
    path = arguments.out / "training_forms.parquet"
    publish(
        found,
        path,
        "What compression adds to a training step",
        "Batches of {batch_size}",
        sides=(_PLAIN, *_FORMS),
        column="form",
        turn="a step",
    )


def _measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row a network and round."""
    device = arguments.device
    about = {
        "model": arguments.model,
        **machine(device),
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
    }
    turns = take_turns(_steps(arguments), arguments.rounds, device, warm=True)
    rows = [
        {**about, "form": form, **timing}
        for form, timing in track(turns, "steps", (len(_FORMS) + 1) * arguments.rounds)
    ]
    return pd.DataFrame(rows)


def _steps(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return a training step of each network, by its form."""
    torch.manual_seed(0)
    plain = build_model(arguments.model, classes=10, channels=3)
    network = Network.from_module(plain, (3, 32, 32))
    configs = {form: NetworkConfig(blocks=dict.fromkeys(network.blocks, block)) for form, block in _FORMS.items()}
    models = {_PLAIN: plain} | {form: compress_model(plain, network.forms(config)) for form, config in configs.items()}
    images = torch.randn(arguments.batch_size, 3, 32, 32, device=arguments.device)
    labels = torch.randint(10, (arguments.batch_size,), device=arguments.device)
    ready = images.contiguous(memory_format=torch.channels_last), labels
    return {form: _step(model, *ready, arguments) for form, model in models.items()}


def _step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, arguments: argparse.Namespace
) -> Callable[[], None]:
    model = model.train().to(arguments.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, TrainingRecipe(lr=1e-4, batch_size=arguments.batch_size))

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()

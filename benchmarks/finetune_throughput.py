"""Fine-tuning a ResNet-20 on CIFAR-10: images a second against the loop most people write, and the same accuracy.

    python benchmarks/finetune_throughput.py --data DIR --weights FILE [--device cuda] [--rounds 3]
    python benchmarks/finetune_throughput.py --data DIR --weights FILE --parity [--seeds 3]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. The first command measures
images/s, the second accuracy; each keeps what the other, or another device, left in `finetune_throughput.parquet`, and
writes `finetune_throughput.md` anew. Loops, each in fp32 and in bf16 autocast:

- `usual`: images held and opened as torchvision's CIFAR10 does, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize,
  a DataLoader with two workers, a network that is not channels last, SGD with momentum, `loss.item()` in each step. An
  epoch includes the start of its workers;
- `ours`: `trainers.training.loop` as it is. It validates after each epoch: here on two images, which stay in its time,
  as do moving the training images to the device and making the optimizer;
- `ceiling`: the same network, optimizer, precision and memory format on eight ready batches of random numbers: nothing
  is read, augmented, checked or validated.

`ours` and `ceiling` run in a process that keeps freed memory (`trainers.runtime.device.keep_freed_memory`), as those of
trials do, `usual` in one of its own as Python starts it. Loops take turns within a round, each from the trained
weights, in an order that moves on by one a round, after a warm-up of each. A run waits up to `--patience` seconds for
others to leave the CPUs alone, and is measured again (three times at most; the least disturbed counts) where they took
more than a twentieth of them meanwhile; with `--patience 0` runs are taken as they come. Beside images a second stand
images a second of CPU time, workers included: on a busy machine, best with `--threads 1`, these alone say something.
Aims are judged on ratios of medians; the range beside one is that of the rounds' own ratios.

The second command damages the network once (cosine, 2,2,2,2 harmonics, coefficients nearest to the trained filters)
and fine-tunes copies of it with every loop but the ceilings and `usual bf16`: 5 epochs, one cycle to 1e-2, as many
steps for all (they are counted). Only `usual` decays norms too. Accuracy is that of all 10,000 test images.
"""

import argparse
import copy
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from scipy import stats
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from layers import compress_model
from spaces import BlockConfig, NetworkConfig
from trainers.data import Data, DataSpec, Split, load_data
from trainers.evaluation import evaluate
from trainers.runtime.device import keep_freed_memory, parse_device
from trainers.training.loop import TrainingLoop
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe
from trainers.trial import load_baseline

_LOOPS = ("usual", "ours", "ceiling")
_PRECISIONS = ("fp32", "bf16")
_ARMS = tuple(f"{loop} {precision}" for precision in _PRECISIONS for loop in _LOOPS)
_RATIOS: tuple[tuple[str, str, float | None], ...] = (
    ("ours bf16", "usual fp32", 2.5),
    ("ours fp32", "usual fp32", 1.1),
    ("ours bf16", "ceiling bf16", 0.9),
    ("ours fp32", "ceiling fp32", 0.9),
    ("ours bf16", "usual bf16", None),
)
_PARITY = ("usual fp32", "ours fp32", "ours bf16")
_EPOCHS = 5
_IMAGES = {"cpu": 6_400, "cuda": 50_000}
_WARM_UP, _READY = 5, 8  # batches
_DISTURBED, _TRIES = 0.05, 3  # share of the CPUs that others took
_NAME = "finetune_throughput"


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = _data(arguments)
    about = {
        "part": "parity" if arguments.parity else "throughput",
        "device": _device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "batch_size": arguments.batch_size,
        "images": len(data.train),
    }
    kept, found = _kept(arguments.out, about), []
    for row in _parity(arguments, data) if arguments.parity else _throughput(arguments):
        found.append({**about, **row})
        _write(pd.concat([kept, pd.DataFrame(found)]) if len(kept) else pd.DataFrame(found), arguments.out)
    print((arguments.out / f"{_NAME}.md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--device", type=parse_device, default=torch.device("cpu"), help="cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="as many as torch takes by itself, where not given")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="of the usual loop's DataLoader")
    parser.add_argument("--images", type=int, help=f"a loop and round; {_IMAGES['cpu']:,} on a CPU, else all 50,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for others to leave the CPUs alone")
    parser.add_argument("--parity", action="store_true", help="compare accuracy, not speed")
    parser.add_argument("--parity-images", type=int, default=5_000, help="training images of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each loop in --parity")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.images = arguments.images or _IMAGES[arguments.device.type]
    return arguments


def _data(arguments: argparse.Namespace) -> Data:
    limit = arguments.parity_images if arguments.parity else arguments.images
    return load_data(DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=limit))


def _throughput(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a loop and round; on a GPU also five epochs in one go."""
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, _prepare, (arguments, False)) as plain,
        ProcessPoolExecutor(1, context, _prepare, (arguments, True)) as keeping,
    ):
        pools = {"usual": plain, "ours": keeping, "ceiling": keeping}

        def run(arm: str, epochs: int) -> dict[str, Any]:
            return pools[arm.split()[0]].submit(_undisturbed, arm, epochs).result()

        for arm in track(_ARMS, "warm-up"):
            pools[arm.split()[0]].submit(_warm_up, arm).result()
        turns = [_ARMS[(turn + index) % len(_ARMS)] for turn in range(arguments.rounds) for index in range(len(_ARMS))]
        for index, arm in enumerate(track(turns, "loops")):
            yield {"arm": arm, "run": index // len(_ARMS), "epochs": 1, **run(arm, 1)}
        if arguments.device.type == "cuda":
            yield {"arm": "ours bf16", "run": 0, "epochs": _EPOCHS, **run("ours bf16", _EPOCHS)}


_shared: dict[str, Any] = {}
"""What the runs of a process share: `arguments`, `data` and `model`."""


def _prepare(arguments: argparse.Namespace, keeps: bool) -> None:
    multiprocessing.set_start_method(
        None, force=True
    )  # this process was spawned; the usual loop's workers start as ever
    if keeps:
        keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = _data(arguments)
    model, _ = load_baseline("resnet20", arguments.weights, data)
    _shared.update(arguments=arguments, data=replace(data, val=_first(data.val, 2)), model=model)


def _warm_up(arm: str) -> None:
    data, arguments = _shared["data"], _shared["arguments"]
    short = replace(data, train=_first(data.train, _WARM_UP * arguments.batch_size))
    _timed(arm, _shared["model"], short, arguments, epochs=1)


def _undisturbed(arm: str, epochs: int) -> dict[str, Any]:
    arguments, tries = _shared["arguments"], list[dict[str, Any]]()
    while not tries or (arguments.patience and tries[-1]["others"] > _DISTURBED and len(tries) < _TRIES):
        _await_quiet(arguments.patience)
        tries.append(_timed(arm, _shared["model"], _shared["data"], arguments, epochs=epochs))
    return min(tries, key=lambda found: found["others"])


def _await_quiet(patience: float) -> None:
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        since = _taken()
        time.sleep(1)
        if _others(since) <= _DISTURBED:
            return


def _taken() -> tuple[float, float, float]:
    """Wall time, CPU seconds of everybody so far (0 where the system does not say), and of this process and workers."""
    about, tick = Path("/proc/stat"), os.sysconf("SC_CLK_TCK")
    fields = about.read_text().split("\n", 1)[0].split()[1:] if about.exists() else []
    everybody = sum(int(field) for index, field in enumerate(fields[:8]) if index not in (3, 4)) / tick
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), everybody, sum(usage.ru_utime + usage.ru_stime for usage in own)


def _others(since: tuple[float, float, float]) -> float:
    """Share of the CPUs that other processes took since then."""
    wall, everybody, own = (now - then for now, then in zip(_taken(), since, strict=True))
    return max(0.0, everybody - own) / (wall * (os.cpu_count() or 1))


def _timed(arm: str, model: nn.Module, data: Data, arguments: argparse.Namespace, *, epochs: int) -> dict[str, Any]:
    device, model, loop = arguments.device, copy.deepcopy(model), _loop(arm, arguments)
    prepared = loop(model, data, _recipe(arm, arguments), epochs, 0)  # what nobody waits for in each trial
    _wait(device)
    since = _taken()
    found = prepared()
    _wait(device)
    seconds, _, cpu_s = (now - then for now, then in zip(_taken(), since, strict=True))
    images = epochs * len(data.train)
    speeds = {"images_s": images / seconds, "images_cpu_s": images / cpu_s}
    return {"seconds": seconds, "cpu_s": cpu_s, **speeds, "others": _others(since), **found}


_Run = Callable[[], dict[str, Any]]


def _loop(arm: str, arguments: argparse.Namespace) -> Callable[[nn.Module, Data, TrainingRecipe, int, int], _Run]:
    """From a network, its data, a recipe, epochs and a seed to the run; the run says what it measured itself."""
    device, workers = arguments.device, arguments.workers

    def usual(model: nn.Module, data: Data, recipe: TrainingRecipe, epochs: int, seed: int) -> _Run:
        torch.manual_seed(seed)
        loader = _usual_loader(data, recipe.batch_size, workers)
        return lambda: {"first_batch_s": _usual(model.to(device), loader, recipe, epochs, device)}

    def ours(model: nn.Module, data: Data, recipe: TrainingRecipe, epochs: int, seed: int) -> _Run:
        def run() -> dict[str, Any]:
            for _ in TrainingLoop(model, data, recipe, epochs=epochs, seed=seed, device=device):
                pass
            return {}

        return run

    def ceiling(model: nn.Module, data: Data, recipe: TrainingRecipe, epochs: int, seed: int) -> _Run:
        ready = list(_random_batches(recipe.batch_size, data, device, seed))
        model.to(device).to(memory_format=torch.channels_last)
        steps = epochs * len(data.train) // recipe.batch_size
        return lambda: _ceiling(model, ready, recipe, steps, device)

    return {"usual": usual, "ours": ours, "ceiling": ceiling}[arm.split()[0]]


def _recipe(arm: str, arguments: argparse.Namespace) -> TrainingRecipe:
    return TrainingRecipe(lr=1e-2, batch_size=arguments.batch_size, precision=arm.split()[1])


class _Images(Dataset[Any]):
    """What torchvision.datasets.CIFAR10 holds, uint8 (n, H, W, C) in numpy, and gives, a transformed PIL image."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.data = _held(split).permute(0, 2, 3, 1).contiguous().numpy()
        self.targets, self.transform = split.labels.tolist(), transform

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def _usual_loader(data: Data, batch_size: int, workers: int) -> DataLoader[Any]:
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    return DataLoader(_Images(data.train, transform), batch_size, shuffle=True, num_workers=workers)


def _usual(
    model: nn.Module, loader: DataLoader[Any], recipe: TrainingRecipe, epochs: int, device: torch.device
) -> float:
    """Train; gives back the seconds that epochs waited for their first batch, mean: workers start in them."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    criterion, waited = nn.CrossEntropyLoss(), 0.0
    model.train()
    for epoch in range(epochs):
        total, waiting = 0.0, time.perf_counter()
        for step, (images, labels) in enumerate(loader):
            waited += 0 if step else time.perf_counter() - waiting
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch + step / len(loader), epochs)
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return waited / epochs


def _random_batches(batch_size: int, data: Data, device: torch.device, seed: int) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_READY):
        images = torch.randn((batch_size, *data.train.images.shape[1:]), generator=generator)
        labels = torch.randint(data.classes, (batch_size,), generator=generator)
        yield images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


def _ceiling(
    model: nn.Module, ready: list[Any], recipe: TrainingRecipe, steps: int, device: torch.device
) -> dict[str, Any]:
    optimizer = make_optimizer(model, recipe)
    model.train()
    for step in range(steps):
        images, labels = ready[step % len(ready)]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {}


def _parity(arguments: argparse.Namespace, data: Data) -> Iterator[dict[str, Any]]:
    """One row a loop and seed; raises RuntimeError where the loops took unequal numbers of steps."""
    baseline, network = load_baseline("resnet20", arguments.weights, data)
    damaged = compress_model(baseline, network.forms(_damage()))
    tested = Split(
        images=torch.cat([_held(data.val), _held(data.test)]), labels=torch.cat([data.val.labels, data.test.labels])
    )
    before, wanted = _top1(damaged, tested, data, arguments), None
    for seed, arm in track([(seed, arm) for seed in range(arguments.seeds) for arm in _PARITY], "runs"):
        model = copy.deepcopy(damaged)
        with _steps() as steps:
            start = time.perf_counter()
            _loop(arm, arguments)(model, data, _recipe(arm, arguments), _EPOCHS, seed)()
            seconds = time.perf_counter() - start
        wanted = wanted or steps[0]
        if steps[0] != wanted:
            raise RuntimeError(f"{arm} took {steps[0]} steps, the loop before it {wanted}")
        after = _top1(model, tested, data, arguments)
        yield {
            "arm": arm, "run": seed, "epochs": _EPOCHS, "steps": steps[0], "seconds": seconds,
            "before": before, "top1": after, "test_images": len(tested),
        }  # fmt: skip


def _damage() -> NetworkConfig:
    block = BlockConfig(basis="cosine", harmonics=(2, 2))
    return NetworkConfig(blocks=dict.fromkeys(("conv1", "layer1", "layer2", "layer3"), block))


@contextmanager
def _steps() -> Iterator[list[int]]:
    """How many steps all optimizers took meanwhile."""
    count = [0]

    def one_more(*_: Any) -> None:
        count[0] += 1

    hook = register_optimizer_step_post_hook(one_more)
    try:
        yield count
    finally:
        hook.remove()


def _top1(model: nn.Module, split: Split, data: Data, arguments: argparse.Namespace) -> float:
    where = {"device": arguments.device, "batch_size": arguments.batch_size}
    return 100 * evaluate(model, split, data.normalize, **where).top1


def _first(split: Split, count: int) -> Split:
    return Split(images=_held(split)[:count], labels=split.labels[:count])


def _held(split: Split) -> torch.Tensor:
    """Return the images (n, C, H, W) of a set that is small enough to be held decoded, as CIFAR-10 is."""
    assert isinstance(split.images, torch.Tensor)
    return split.images


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _kept(out: Path, about: dict[str, Any]) -> pd.DataFrame:
    """Former rows that this run does not measure anew."""
    path = out / f"{_NAME}.parquet"
    if not path.exists():
        return pd.DataFrame()
    rows = pd.read_parquet(path)
    return rows[(rows.part != about["part"]) | (rows.device != about["device"])]


def _write(rows: pd.DataFrame, out: Path) -> None:
    scratch = out / f".{_NAME}.parquet.tmp"
    rows.to_parquet(scratch, index=False)
    scratch.replace(out / f"{_NAME}.parquet")
    lines = ["# Fine-tuning a ResNet-20 on CIFAR-10: speed, and the accuracy it keeps"]
    for _, part in rows[rows.part == "throughput"].groupby("device", sort=False):
        lines += _throughput_lines(part)
    for _, part in rows[rows.part == "parity"].groupby("device", sort=False):
        lines += _parity_lines(part)
    (out / f"{_NAME}.md").write_text("\n".join([*lines, ""]))


def _throughput_lines(rows: pd.DataFrame) -> list[str]:
    long, rows = rows[rows.epochs > 1], rows[rows.epochs == 1]
    wall, cpu = (_by_round(rows, speed) for speed in ("images_s", "images_cpu_s"))
    if wall.empty:
        return []
    about, waited, others = rows.iloc[0], rows.first_batch_s.median(), rows.others.max()
    judged = "wall time" if others <= _DISTURBED else "CPU time"
    lines = [
        "",
        f"## Images a second, {about.device}",
        "",
        f"{about.images:,} images a loop and round, batches of {about.batch_size}, n = {len(wall)} rounds, "
        f"{about.threads} thread(s), torch {about.torch}; medians, with ranges. The usual loop's epoch waits "
        f"{waited:.2f} s for its first batch (median; workers start), which is in its time. Other processes took up to "
        f"{100 * others:.0f} % of the CPUs during a run, so aims are judged on {judged}.",
        "",
        "| loop | images/s | range | images/s of CPU time | range |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {arm} | {_median(wall[arm], ',.0f')} | {_median(cpu[arm], ',.0f')} |" for arm in _ARMS]
    lines += ["", "| ratio | images/s | of rounds | images/s of CPU time | of rounds | aim | met |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for pair in _RATIOS:
        lines.append(_ratio_line(*pair, wall, cpu, judged))
    for _, row in long.iterrows():
        lines += ["", f"`{row.arm}`, {row.epochs} epochs of {row.images:,} images in one call: {row.seconds:.1f} s."]
    return lines


def _by_round(rows: pd.DataFrame, speed: str) -> pd.DataFrame:
    """Whole rounds alone, a column a loop."""
    return rows.pivot(index="run", columns="arm", values=speed).reindex(columns=list(_ARMS)).dropna()


def _median(values: pd.Series, form: str) -> str:
    return f"{values.median():{form}} | {values.min():{form}} to {values.max():{form}}"


def _ratio_line(ours: str, other: str, aim: float | None, wall: pd.DataFrame, cpu: pd.DataFrame, judged: str) -> str:
    cells, ratios = [], {}
    for name, speeds in (("wall time", wall), ("CPU time", cpu)):
        ratios[name], each = speeds[ours].median() / speeds[other].median(), speeds[ours] / speeds[other]
        cells.append(f"{ratios[name]:.2f} | {each.min():.2f} to {each.max():.2f}")
    met = " | " if aim is None else f"at least {aim} | {'yes' if ratios[judged] >= aim else 'no'}"
    return f"| {ours} / {other} | {' | '.join(cells)} | {met} |"


def _parity_lines(rows: pd.DataFrame) -> list[str]:
    about, usual = rows.iloc[0], rows[rows.arm == _PARITY[0]].top1
    lines = [
        "",
        f"## Accuracy after the same steps, {about.device}",
        "",
        f"A ResNet-20 with 2,2,2,2 cosine harmonics, {about.before:.2f} % before; {about.images:,} training images, "
        f"{about.epochs} epochs, batches of {about.batch_size}, {about.steps:.0f} steps, {about.threads} thread(s), "
        f"torch {about.torch}. % of {about.test_images:,.0f} test images; the difference is that of means, with its "
        "95 % interval (Welch).",
        "",
        "| loop | n | each seed | mean | sd | less `usual fp32` | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in _PARITY:
        found = rows[rows.arm == arm].sort_values("run").top1
        each = ", ".join(f"{top1:.2f}" for top1 in found)
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
        mean = f"{found.mean():.2f}" if len(found) else ""
        lines.append(f"| {arm} | {len(found)} | {each} | {mean} | {spread} | {_difference(arm, found, usual)} |")
    return lines


def _difference(arm: str, found: pd.Series, usual: pd.Series) -> str:
    if arm == _PARITY[0] or min(len(found), len(usual)) < 2:
        return "|"
    low, high = stats.ttest_ind(found, usual, equal_var=False).confidence_interval()
    return f"{found.mean() - usual.mean():+.2f} | {low:+.2f} to {high:+.2f}"


if __name__ == "__main__":
    main()

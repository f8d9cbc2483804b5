"""What the files of compressed networks hold, and how they run where they are deployed: bytes, load, time, classes.

    python benchmarks/deployment.py --data DIR --weights FILE [--networks resnet8 resnet20 resnet56 vgg16]
        [--runtimes onnxruntime openvino] [--kinds NAME ...] [--budget 2] [--images 5000]

Networks: a ResNet-8 that is trained on digits for a few epochs, a trained ResNet-20 on CIFAR-10 (`--data` is a folder
of train-*.parquet and test-*.parquet, `--weights` its weights); ResNet-56 and VGG16 with random weights, of which
classes say nothing. Every kind of form is put on the whole network, fitted by least squares and not fine-tuned. Rows
are kept as they end, and the same command goes on from there. Columns:

- `file_bytes`, `inlined_bytes`: of model.onnx with functions and without; the bounds are 1.1 x `size_bytes` + 500 bytes
  (3,000 inlined) for each convolution and linear layer + 6,000;
- `load_ms`, `dense_load_ms`: until a session is ready, the least of 3;
- `ms_1`, `ratio_1`, ... `ratio_64`: median time of a pass, and its ratio to that of the uncompressed network's own file
  (norms folded by the exporter), both timed by turns with one thread, with the 95 % interval of the ratio's median. Of
  one thread it is the processor's time, from which other processes take less than from the clock's;
- `differing`: for how many of `images` the file gives another class than the packed model in PyTorch.

Writes `deployment.parquet` and `deployment.md`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import pandas as pd
import torch
from resnet20_trials import device as processor
from torch import Tensor, nn

from layers import compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model
from spaces.portable.compact import strip
from spaces.portable.skeleton import Skeleton, make_skeleton
from spaces.portable.tuning import Runtime, choose_executions
from trainers.data import Data, DataSpec, load_data
from trainers.runtime.latency import random_images
from trainers.runtime.sessions import Session, open_session
from trainers.runtime.turns import median_interval
from trainers.train import random_network, train_model
from trainers.training.recipe import RECIPES
from trainers.trial import load_baseline

_KEY = ["network", "kind", "runtime"]
_LAYER_BYTES, _INLINED_BYTES, _ONCE_BYTES, _OF_SIZE = 500, 3_000, 6_000, 1.1
_BATCHES = (1, 64)
_TURN_S, _LEAST_ROUNDS, _MOST_ROUNDS = 0.01, 5, 21
_BOUND = 1.05
"""Most time, as a share of the uncompressed network's."""
_8_BITS = {"bits": 8, "exponent_block": 8}
_COSINE = {"basis": "cosine"}
_HALF = {"pruning_rate": 0.5}
_KINDS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "8 bits in blocks of 8": _8_BITS,
    "4 bits in blocks of 32 channels": {"bits": 4, "exponent_block": 32, "exponent_axis": "channel"},
    "7 bits, a scale a filter": {"bits": 7, "scale": "bfloat16"},
    "cosine 1x1": {**_COSINE, "harmonics": (1, 1)},
    "cosine 2x2": {**_COSINE, "harmonics": (2, 2)},
    "chebyshev 2x3": {"basis": "chebyshev", "harmonics": (2, 3)},
    "cosine 2x2 allocated": {**_COSINE, "harmonics": (2, 2), "allocation": "filter"},
    "cosine 1x1, 6 bits": {**_COSINE, "harmonics": (1, 1), "bits": 6, "exponent_block": 8},
    "templates, gains": {**_HALF, "transform": "scalar"},
    "templates, rotations in 2 groups": {**_HALF, "transform": "rotation", "groups": 2},
    "templates, affine": {**_HALF, "transform": "affine"},
    "1 of 8 templates, gains": {"pruning_rate": 0.875, "transform": "scalar"},
    "pruned by half": {**_HALF, "transform": "zero"},
    "pruned by three quarters, 8 bits": {"pruning_rate": 0.75, "transform": "zero", **_8_BITS},
    "cosine 2x2, affine templates, 7 bits, norms in 8": {
        **_COSINE,
        **_HALF,
        "harmonics": (2, 2),
        "transform": "affine",
        "bits": 7,
        "exponent_block": 8,
        "norms_and_biases": 8,
    },
    "8 bits, inputs rounded to 8": {**_8_BITS, "activation_bits": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of CIFAR-10 as parquet, for ResNet-20")
    parser.add_argument("--weights", help="safetensors of the trained ResNet-20")
    parser.add_argument("--networks", nargs="+", default=list(_NETWORKS), choices=list(_NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--kinds", nargs="+", default=list(_KINDS), choices=list(_KINDS))
    parser.add_argument("--images", type=int, default=5_000, help="most images that classes are compared for")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each batch size of a timing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "deployment.parquet"
    done = pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=_KEY)
    for row in _measure(arguments, set(done[_KEY].itertuples(index=False, name=None))):
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True) if len(done) else pd.DataFrame([row])
        done.to_parquet(scratch := path.with_name(f".{path.name}.tmp"), index=False)
        scratch.replace(path)
        (arguments.out / "deployment.md").write_text(_markdown(done))
    print(_markdown(done))


def _measure(arguments: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each network, kind and runtime that is missing."""
    for name in arguments.networks:
        wanted = [(k, r) for k in arguments.kinds for r in arguments.runtimes if (name, k, r) not in done]
        if not wanted:
            continue
        network, data = _NETWORKS[name](arguments)
        image = data.val.image_shape if data is not None else (3, 32, 32)
        skeleton, dense = make_skeleton(network, image), _dense_file(network, image)
        described = Network.from_module(network, image)
        images = _images(data, arguments.images)
        for kind, runtime in wanted:
            config = _config(described, **_KINDS[kind])
            model = compress_model(network, described.forms(config)).eval()
            row = _row(skeleton, model, dense, runtime, images, arguments.budget)
            size = described.cost(config).size_bytes
            yield {
                "network": name,
                "kind": kind,
                "runtime": runtime,
                "size_bytes": size,
                "layers": len(skeleton.calls),
                **row,
                **_machine(runtime),
            }
            print(f"{name}, {kind}, {runtime}: {row}", flush=True)


def _row(
    skeleton: Skeleton, model: nn.Module, dense: bytes, runtime: str, images: Tensor | None, budget: float
) -> dict[str, Any]:
    executions = choose_executions(skeleton, model, Runtime(runtime))  # type: ignore[arg-type]
    file, inlined = (skeleton.file(model, executions=executions, inline=inline) for inline in (False, True))
    used = file if runtime == "onnxruntime" else inlined
    loads = [[_load_ms(content, runtime) for content in (used, dense)] for _ in range(3)]
    sessions = [_open(content, runtime) for content in (used, dense)]
    row: dict[str, Any] = {
        "file_bytes": len(file),
        "inlined_bytes": len(inlined),
        "dense_bytes": len(dense),
        "load_ms": min(load[0] for load in loads),
        "dense_load_ms": min(load[1] for load in loads),
        "two_stage_layers": len(executions),
    }
    for batch in _BATCHES:
        row |= {f"{name}_{batch}": value for name, value in _turns(sessions, batch, budget).items()}
    return row | _differing(model, sessions[0], images)


def _turns(sessions: list[Session], batch: int, budget: float) -> dict[str, float]:
    """Return the processor's time of the first session's pass and the second's, and their ratio over rounds."""
    images = random_images(batch, sessions[0].shape)
    calls = [session.call(images) for session in sessions]
    passes = max(1, round(_TURN_S / max(_seconds(calls[1], 1), 1e-7)))
    rounds: list[list[float]] = []
    start = time.process_time()
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _MOST_ROUNDS and time.process_time() - start < budget):
        rounds.append([_seconds(call, passes) for call in calls])
    ratios = [ours / dense for ours, dense in rounds]
    low, high = median_interval(ratios)
    ours_ms, dense_ms = (1000 * median(times) for times in zip(*rounds, strict=True))
    times = {"ms": ours_ms, "dense_ms": dense_ms, "ratio": median(ratios)}
    return {**times, "low": low, "high": high, "rounds": len(rounds)}


def _seconds(call: Callable[[], Any], passes: int) -> float:
    call()
    start = time.process_time()
    for _ in range(passes):
        call()
    return (time.process_time() - start) / passes


def _differing(model: nn.Module, session: Session, images: Tensor | None) -> dict[str, Any]:
    """Return for how many images the file's class is another than the packed model's."""
    if images is None:
        return {"images": 0, "differing": 0}
    differing = 0
    for batch in images.split(100):
        with torch.no_grad():
            expected = model(batch.contiguous(memory_format=torch.channels_last)).argmax(1)
        logits = session.call(batch.numpy())()
        found = next(iter(logits.values())) if hasattr(logits, "values") else logits[0]
        differing += int((torch.from_numpy(found.copy()).argmax(1) != expected).sum())
    return {"images": len(images), "differing": differing}


def _open(content: bytes, runtime: str) -> Session:
    return open_session(Path("model.onnx"), runtime, threads=1, content=content)


def _load_ms(content: bytes, runtime: str) -> float:
    start = time.perf_counter()
    _open(content, runtime)
    return 1000 * (time.perf_counter() - start)


def _config(network: Network, norms_and_biases: int | None = None, **knobs: Any) -> NetworkConfig:
    blocks = {}
    for block in network.blocks:
        channels = [network.shapes[layer].filter_channels for layer in network.layers_in(block)]
        fits = all(count % knobs.get("groups", 1) == 0 for count in channels)
        blocks[block] = BlockConfig(**(knobs if fits else {**knobs, "groups": 1}))
    if norms_and_biases is not None:
        blocks["norms_and_biases"] = BlockConfig(bits=norms_and_biases)
    return NetworkConfig(blocks=blocks)


def _dense_file(network: nn.Module, image: tuple[int, int, int]) -> bytes:
    """Return the uncompressed network as the exporter writes it, without metadata."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, *image),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
    )
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "dense.onnx", external_data=False)
        model = onnx.load(Path(folder) / "dense.onnx")
    strip(model)
    return bytes(model.SerializeToString())


def _images(data: Data | None, limit: int) -> Tensor | None:
    if data is None:
        return None
    return data.normalize(data.val.take(torch.arange(min(limit, len(data.val))))).contiguous()


def _resnet8(arguments: argparse.Namespace) -> tuple[nn.Module, Data | None]:
    data = load_data(DataSpec(name="digits"))
    network = random_network("resnet8", data, seed=0)
    train_model(network, data, RECIPES["baseline"], epochs=10, seed=0, device=torch.device("cpu"))
    return network.eval(), data


def _resnet20(arguments: argparse.Namespace) -> tuple[nn.Module, Data | None]:
    data = load_data(DataSpec(name=f"parquet:{arguments.data}", val_from="test"))
    return load_baseline("resnet20", arguments.weights, data)[0], data


def _random(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, Data | None]:
    torch.manual_seed(0)
    network = build_model(name, classes=10, channels=3).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.running_mean, std=0.1)
    return network, None


_NETWORKS: dict[str, Callable[[argparse.Namespace], tuple[nn.Module, Data | None]]] = {
    "resnet8": _resnet8,
    "resnet20": _resnet20,
    "resnet56": partial(_random, "resnet56"),
    "vgg16": partial(_random, "vgg16"),
}


def _machine(runtime: str) -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "onnx", runtime)}
    about = ", ".join(f"{name} {found}" for name, found in versions.items())
    return {"device": processor(), "threads": 1, "versions": about, "load": os.getloadavg()[0]}


def _markdown(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    lines = [
        "# Deployed files",
        "",
        f"{first.device}, 1 thread; {'; '.join(rows.versions.unique())}. Load average {rows.load.min():.1f} to "
        f"{rows.load.max():.1f}. Ratios are to the uncompressed network's file, medians of "
        f"{rows[['rounds_1', 'rounds_64']].min().min()} to {rows[['rounds_1', 'rounds_64']].max().max()} rounds with "
        f"their 95 % intervals. Made by `python benchmarks/deployment.py`.",
        "",
        *_met(rows),
    ]
    for (network, runtime), same in rows.groupby(["network", "runtime"], sort=False):
        dense = same.iloc[0]
        lines += [
            "",
            f"## {network}, {runtime}",
            "",
            f"Uncompressed: {dense.dense_bytes:,} bytes, loads in {same.dense_load_ms.median():.0f} ms, "
            f"{same.dense_ms_1.median():.2f} ms at batch 1, {same.dense_ms_64.median():.1f} ms at batch 64.",
            "",
            "| form | packed | file (bound) | inlined (bound) | load ms | batch 1 | batch 64 | layers in two stages | "
            "classes differing |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.kind} | {row.size_bytes:,} | {row.file_bytes:,} ({_bound(row, _LAYER_BYTES):,.0f}) | "
            f"{row.inlined_bytes:,} ({_bound(row, _INLINED_BYTES):,.0f}) | {row.load_ms:.0f} | {_ratio(row, 1)} | "
            f"{_ratio(row, 64)} | {row.two_stage_layers} | "
            f"{f'{row.differing} of {row.images:,}' if row.images else ''} |"
            for row in same.itertuples()
        ]
    return "\n".join([*lines, ""])


def _met(rows: pd.DataFrame) -> Iterator[str]:
    """Yield how many rows keep to each aim."""
    emulated = rows.kind.str.contains("rounded")
    plain = rows[~emulated]
    for what, kept in {
        "file within its bound": rows.apply(lambda row: row.file_bytes <= _bound(row, _LAYER_BYTES), axis=1),
        "inlined file within its bound": rows.apply(lambda r: r.inlined_bytes <= _bound(r, _INLINED_BYTES), axis=1),
        "load within 2 x the uncompressed network's + 0.5 s": rows.load_ms <= 2 * rows.dense_load_ms + 500,
        "classes equal (no inputs rounded)": plain.differing == 0,
        f"batch 1 within {_BOUND} x (no inputs rounded)": plain.ratio_1 <= _BOUND,
        f"batch 64 within {_BOUND} x (no inputs rounded)": plain.ratio_64 <= _BOUND,
    }.items():
        yield f"- {what}: {kept.sum()} of {len(kept)}"


def _bound(row: Any, of_layer: int) -> float:
    return float(_OF_SIZE * row.size_bytes + of_layer * row.layers + _ONCE_BYTES)


def _ratio(row: Any, batch: int) -> str:
    ratio, low, high = (getattr(row, f"{name}_{batch}") for name in ("ratio", "low", "high"))
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()

"""Block floating point on this machine: what rounding costs.

    python benchmarks/quantization_speed.py [--threads 2] [--rounds 15]

Rounding to nearest even reads a tensor once and writes it once, as a copy does: so its speed is told as a ratio to that
of `torch.Tensor.copy_`. Tensors are float32, as evaluation has them, or bfloat16, as training has them under autocast:
of 40 kB (a layer's filters), 4 MiB (a batch of activations), 64 and 256 MiB. It writes `quantization_speed.parquet`
(one row a call) and `quantization_speed.md`. Sides:

- `copy`: `copy_` into memory that is there;
- `kernel`: our C kernel into the same memory. Its ratio to `copy` is the cost of rounding itself;
- `clone`: a copy into new memory, where the system hands out large tensors a page at a time;
- `quantize`: what a layer calls, into new memory too. Its ratio to `clone` is what a forward pass sees;
- `through float32`: where the tensor is bfloat16, a cast to float32, `quantize`, and a cast back, beside `clone`;
- `plain`: the same in plain PyTorch, as where there is no C compiler or under `torch.compile`. Beside `clone`.

Formats have 8 mantissa bits: blocks of 1, 16 and 64 consecutive values, and of 16 channels of (64, C, 32, 32), which
lie 1,024 values apart, or next to each other in channels last. All sides take turns within a round, in an order that
moves on by one a round. Ratios are those of medians; the range beside one is that of the rounds' own ratios. They say
little where other work shares the processor: `echo -18 > /proc/self/autogroup`, as root, keeps it out of the way.
"""

import argparse
import itertools
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor
from turns import take_turns

from layers.blockfloat import BlockFormat, kernels, quantize
from layers.blockfloat.reference import round_reference

_BYTES = (40_000, 4 << 20, 64 << 20, 256 << 20)
_FORMATS = {
    "1": BlockFormat(bits=8),
    "16": BlockFormat(bits=8, block=16),
    "64": BlockFormat(bits=8, block=64),
    "16 channels": BlockFormat(bits=8, block=16, axis="channel"),
    "16 channels, last": BlockFormat(bits=8, block=16, axis="channel"),
}
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PAIRS = (("kernel", "copy"), ("quantize", "clone"), ("through float32", "clone"), ("plain", "clone"))
_PLAIN_MOST = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _write(_measure(arguments.rounds), arguments.out)


def _measure(rounds: int) -> pd.DataFrame:
    """One row a size, type, side, format and round."""
    about = {"device": _processor(), "threads": torch.get_num_threads(), "torch": version("torch")}
    rows = []
    for size, dtype in track([*itertools.product(_BYTES, _TYPES)], "sizes and types"):
        for (side, blocks), timing in take_turns(_sides(size, _TYPES[dtype]), rounds):
            rows.append({"bytes": size, "type": dtype, "side": side, "blocks": blocks, **timing, **about})
    return pd.DataFrame(rows)


def _sides(size: int, dtype: torch.dtype) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the calls to time, by side and blocks (copies have none)."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size // dtype.itemsize, generator=generator).to(dtype)
    ready = torch.zeros_like(x)
    sides: dict[tuple[str, str], Callable[[], Any]] = {("copy", ""): lambda: ready.copy_(x), ("clone", ""): x.clone}
    for name, form in _FORMATS.items():
        shaped, target = _shaped(x, name), _shaped(ready, name)
        if shaped is None or target is None:
            continue
        if kernels.kernel(dtype) is not None:
            sides["kernel", name] = partial(kernels.round_into, target, shaped, form)
        sides["quantize", name] = partial(quantize, shaped, form)
        if dtype != torch.float32:
            sides["through float32", name] = partial(_through_float32, shaped, form)
        if size <= _PLAIN_MOST:
            sides["plain", name] = partial(round_reference, shaped, form)
    return sides


def _through_float32(x: Tensor, form: BlockFormat) -> Tensor:
    return quantize(x.float(), form).to(x.dtype)


def _shaped(x: Tensor, name: str) -> Tensor | None:
    """Return the tensor as contiguous memory in the shape that blocks are cut from; `None` if it is small."""
    if "channels" not in name:
        return x
    if x.numel() % (64 * 1024) or x.numel() < 64 * 1024 * 16:
        return None
    return x.view(64 * 1024, -1) if name.endswith("last") else x.view(64, -1, 32, 32)


def _write(runs: pd.DataFrame, out: Path) -> None:
    runs.to_parquet(out / "quantization_speed.parquet", index=False)
    text = _markdown(runs)
    (out / "quantization_speed.md").write_text(text)
    print(text)


def _markdown(runs: pd.DataFrame) -> str:
    first, rounds = runs.iloc[0], runs["round"].max() + 1
    lines = [
        "# How fast block floating point is",
        "",
        f"`python benchmarks/quantization_speed.py --threads {first.threads} --rounds {rounds}`: {first.device}, "
        f"{first.threads} threads, torch {first.torch}, n = {rounds} rounds, load average "
        f"{runs.load.min():.1f} to {runs.load.max():.1f}.",
        "Median milliseconds of a call; a ratio is that of medians, its range that of the rounds' own.",
        "",
        "| bytes | type | blocks | side | ms | beside | ms | ratio | range |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (size, dtype), same in runs.groupby(["bytes", "type"], sort=False):
        for blocks, (side, other) in itertools.product(_FORMATS, _PAIRS):
            lines += _line(same, f"{size:,} | {dtype}", blocks, side, other)
    return "\n".join(lines) + "\n"


def _line(same: pd.DataFrame, tensor: str, blocks: str, side: str, other: str) -> list[str]:
    one = same[(same.side == side) & (same.blocks == blocks)].set_index("round").seconds
    two = same[same.side == other].set_index("round").seconds
    if one.empty:
        return []
    ratios = one / two
    return [
        f"| {tensor} | {blocks} | {side} | {1e3 * one.median():.3f} | {other} | {1e3 * two.median():.3f} | "
        f"{one.median() / two.median():.2f} | {ratios.min():.2f} - {ratios.max():.2f} |"
    ]


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

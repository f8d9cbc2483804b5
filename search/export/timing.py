"""How fast an exported file is beside the uncompressed network's, in the runtime that it is for, from one run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import compress_model
from spaces import build_model, save_model
from spaces.models import copy_module
from spaces.packed import OwnModel
from spaces.portable import write
from trainers.data import Data
from trainers.runtime.bench import bench
from trainers.runtime.runtimes import DEFAULT_RUNTIME, DEFAULT_THREADS
from trainers.spec import TrialSpec
from trainers.trial import image_card

__all__ = ["time_export"]

_TIMED = ("safetensors", "onnx", "pt2")
_BUDGET_S = 0.5
"""Seconds for each batch size."""


def time_export(
    file: Path, format: str, spec: TrialSpec, data: Data, own: OwnModel | None, runtime: str | None = None
) -> dict[str, Any]:
    """Return `bench`, plain JSON: bytes and latencies of this file and of the uncompressed network's, and where.

    The two take turns in `runtime`, else in that of the trial's study if it opens such files, else in the format's
    usual one. Nothing is returned for a format that is timed elsewhere.
    """
    if format not in _TIMED:
        return {}
    if runtime is None and format == "onnx" and spec.runtime != DEFAULT_RUNTIME:
        runtime = spec.runtime
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / f"uncompressed.{format}"
        _write_uncompressed(other, format, spec, data, own)
        threads = spec.latency_threads or DEFAULT_THREADS
        found = bench(file, other, runtime=runtime, threads=threads, model=own, budget_s=_BUDGET_S)
    this, whole = ({name: entry[name] for name in ("bytes", "latency_ms")} for entry in found["files"])
    others = {name: found[name] for name in ("threads", "device", "versions", "ratios", "rounds")}
    return {"bench": {"runtime": found["files"][0]["runtime"], "file": this, "uncompressed": whole, **others}}


def _write_uncompressed(target: Path, format: str, spec: TrialSpec, data: Data, own: OwnModel | None) -> None:
    """Write the trial's network without compression, with random weights: its trained ones are as large and as fast."""
    card: Mapping[str, Any] = {"model": spec.model, **image_card(data)}
    packed = target.with_name("packed.safetensors")
    save_model(compress_model(_uncompressed(spec.model, data, own), {}), packed, card=card)
    write(packed, target, format=format, card=card, model=own)


def _uncompressed(name: str, data: Data, own: OwnModel | None) -> nn.Module:
    if isinstance(own, nn.Module):
        return copy_module(own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if own is not None:
            return own(classes=data.classes, channels=data.channels)
        return build_model(name, classes=data.classes, channels=data.channels)

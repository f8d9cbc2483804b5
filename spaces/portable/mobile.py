"""A network in int8 as a .pte file of ExecuTorch, whose XNNPACK kernels run it on phones and other CPUs.

Its filters are stored as built, a byte a tap and a scale a filter; norms are folded into them. ExecuTorch may be in an
environment of its own, whose Python the variable OVERTONE_MOBILE_PYTHON names; a script there writes and runs the file
(`spaces.portable.executorch_script`).
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor, nn

from layers import CompressedNorm, OvertoneError, UsageError, compressed_layers
from layers.integer.calls import hidden_calls
from layers.integer.network import IntegerNetwork, int8_layers, mark_calls

__all__ = ["MobileNetwork", "check_mobile", "fake_quantized", "write_mobile"]

_VARIABLE = "OVERTONE_MOBILE_PYTHON"
_SCRIPT = Path(__file__).with_name("executorch_script.py")
_SHIFT = 128
"""ExecuTorch's codes are those of `layers.integer` less this."""


def check_mobile() -> None:
    """Raise `UsageError` if there is no ExecuTorch."""
    code = "import importlib.util as u; raise SystemExit(not (u.find_spec('executorch') and u.find_spec('torch')))"
    command = [_python(), "-P", "-c", code]
    try:
        found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise UsageError(
            f"format 'pte' needs the package executorch: pip install executorch, or set {_VARIABLE} to the Python of "
            "an environment that has it and PyTorch"
        )


def write_mobile(model: nn.Module, uncompressed: nn.Module, image: tuple[int, int, int], target: Path) -> None:
    """Write a compressed network whose layers compute in int8; `uncompressed` is the network that it was made from.

    The file takes one image (1, C, H, W) at a time. Raises `OvertoneError` for a network without int8 layers, and if
    ExecuTorch fails.
    """
    if not int8_layers(model):
        raise OvertoneError("a pte file holds layers in int8 alone: compress the network with arithmetic: int8")
    network = fake_quantized(model, uncompressed)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "network.pt2"
        torch.export.save(torch.export.export(network, (torch.zeros(1, *image),)), program)
        done = subprocess.run(_command("write", program, target), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OvertoneError(f"no program of ExecuTorch could be written: {_last_line(done.stderr)}")


def fake_quantized(model: nn.Module, uncompressed: nn.Module) -> nn.Module:
    """Return the uncompressed network with the filters of a compressed one, and activations fake-quantized as there."""
    assert isinstance(model, IntegerNetwork)
    network = copy.deepcopy(uncompressed).eval()
    network.load_state_dict(_dense_state(model), strict=False)
    grids = [_plain(grid) for grid in model.activation_grids]
    rows = model.rounding_plan.grids

    def mark(x: Tensor, number: int) -> Tensor:
        return _on_grid(x, grids[rows[number]]) if number in rows else x

    mark_calls(network, mark)
    for name, layer in int8_layers(model).items():
        _round_input(network.get_submodule(name), _plain(layer.get_buffer("input_grid")))
    return network


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what an uncompressed network has instead of the compressed layers."""
    state = dict(model.state_dict())
    for name, layer in compressed_layers(model).items():
        if isinstance(layer, CompressedNorm):
            values = layer.plain().state_dict()
        else:
            bias = layer.rounded_bias()
            values = {"weight": layer.weight} | ({} if bias is None else {"bias": bias})
        state |= {f"{name}.{part}": value.detach() for part, value in values.items()}
    return state


def _round_input(layer: nn.Module, grid: tuple[float, int]) -> None:
    """Have a layer round its input, unless what made the input has."""

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        with hidden_calls():
            return (x if getattr(x, "mobile_grid", None) == grid else _on_grid(x, grid),)

    layer.register_forward_pre_hook(hook)


def _on_grid(x: Tensor, grid: tuple[float, int]) -> Tensor:
    scale, zero = grid
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero - _SHIFT, -_SHIFT, _SHIFT - 1)
    rounded.mobile_grid = grid  # type: ignore[attr-defined]
    return rounded


def _plain(grid: Tensor) -> tuple[float, int]:
    return float(grid[0]), int(grid[1])


class MobileNetwork(nn.Module):
    """A .pte file in ExecuTorch's runtime, called like a network; images are computed one by one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        command = _command("run", path)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the runtime)
        self._runtime = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=-1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        assert self._runtime.stdin is not None
        assert self._runtime.stdout is not None
        try:
            images = BytesIO()
            np.save(images, x.contiguous().numpy())
            self._runtime.stdin.write(len(images.getvalue()).to_bytes(8, "little") + images.getvalue())
            self._runtime.stdin.flush()
            length = int.from_bytes(self._runtime.stdout.read(8), "little")
            return torch.from_numpy(np.load(BytesIO(self._runtime.stdout.read(length))))
        except (OSError, ValueError, EOFError) as error:
            self._errors.seek(0)
            raise OvertoneError(f"cannot run it in ExecuTorch: {_last_line(self._errors.read().decode())}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the runtime."""
        self._runtime.communicate()
        self._errors.close()


def _command(*arguments: str | Path) -> list[str]:
    return [_python(), "-P", str(_SCRIPT), *map(str, arguments)]


def _python() -> str:
    return os.environ.get(_VARIABLE) or sys.executable


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it ended without a word"])[-1].rstrip(".")

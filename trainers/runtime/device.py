"""Where a network runs, and how the process that runs it holds memory."""

import ctypes
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

from layers.errors import UsageError

__all__ = ["default_device", "device_name", "keep_freed_memory", "parse_device", "training_precision"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def default_device() -> str:
    """Return `cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """Return what a GPU or this machine's processor is called, such as `NVIDIA H200`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(\S.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine() or "cpu"


def parse_device(name: str) -> torch.device:
    """Return the device named cpu, cuda or cuda:1; raise `UsageError` if this machine does not have it."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name not in ("cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in range(gpus))):
        devices = f"cuda:0 to cuda:{gpus - 1}" if gpus else "no GPU, so only cpu is allowed"
        raise UsageError(f"device (={name!r}) must be cpu, cuda or cuda:N; this machine has {devices}")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Make this process keep the memory it frees for its next tensors; do nothing under C libraries other than glibc.

    glibc normally gives large tensors (the activations of each batch, for one) back to the system, which must find and
    clear their pages anew. For processes whose work is training: this cannot be undone, and their memory stays at its
    highest until they end.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def training_precision(setting: str, device: torch.device) -> str:
    """Return what a device trains in, `fp32` or `bf16`, under the setting `fp32`, `bf16` or `auto`.

    `auto` is bf16 if the hardware multiplies it: CUDA from Ampere on, CPUs with AMX or AVX-512 BF16.
    """
    if setting != "auto":
        return setting
    return "bf16" if _multiplies_bf16(device) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))

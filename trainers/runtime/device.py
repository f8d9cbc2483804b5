"""Where a network runs, and how the process that runs it holds memory."""

import ctypes
import platform

import torch

from layers.errors import UsageError

__all__ = ["default_device", "keep_freed_memory", "parse_device", "training_precision"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_device(name: str) -> torch.device:
    """The device called cpu, cuda or cuda:1; `UsageError` where this machine has none such."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name not in ("cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in range(gpus))):
        have = f"cuda:0 to cuda:{gpus - 1}" if gpus else "no GPU, so cpu alone is allowed"
        raise UsageError(f"device (={name!r}) must be cpu, cuda or cuda:N; this machine has {have}.")
    return torch.device(name)


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for its next tensors; under other C libraries than glibc, nothing.

    By itself glibc gives large tensors back to the system, which must find and clear their pages anew: each batch's
    activations, for one. For processes whose work is training: it cannot be taken back, and their memory stays at its
    highest until they end.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def training_precision(asked: str, device: torch.device) -> str:
    """What a device trains in, `fp32` or `bf16`, where `fp32`, `bf16` or `auto` is asked.

    `auto` is bf16 where the hardware multiplies it: CUDA from Ampere on, CPUs with AMX or AVX-512 BF16.
    """
    if asked != "auto":
        return asked
    return "bf16" if _multiplies_bf16(device) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))

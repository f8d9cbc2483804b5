import platform
import subprocess
import sys

import pytest
import torch

from layers import UsageError
from trainers.runtime.device import default_device, parse_device, training_precision


def _with(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, 2)
    assert [str(parse_device(name)) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    assert default_device() == "cuda"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "warp", "", "meta"])
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _with(monkeypatch, 0)
    assert default_device() == "cpu"
    with pytest.raises(UsageError, match=r"device \(='.*'\) must be cpu, cuda or cuda:N; this machine has no GPU"):
        parse_device(name)


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, 2)
    with pytest.raises(UsageError, match=r"device \(='cuda:2'\) .* this machine has cuda:0 to cuda:1"):
        parse_device("cuda:2")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16")],
)
def test_precision_is_that_of_the_hardware_where_nobody_says(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert training_precision("auto", cpu) == expected
    assert [training_precision(asked, cpu) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert training_precision("auto", torch.device("meta")) == "fp32"


_BATCHES = """
import resource, sys, torch
from trainers.runtime.device import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
def batch():
    layers = [torch.ones(10 << 20) for _ in range(3)]
for _ in range(6):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_freed_stays_with_the_process() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", _BATCHES, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults() / 2

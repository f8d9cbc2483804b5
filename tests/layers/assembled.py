"""What the assembler says of our CUDA kernels, which no GPU is needed for."""

import io
import re

from layers.kernels import gpu


def assert_in_registers(source: str, arch: str, macros: tuple[str, ...], names: list[str]) -> None:
    """The kernels of a file are these, for this architecture, without warnings, stack frames or spills."""
    log = io.StringIO()
    gpu.compile_kernels(source, arch, macros, log)
    text = log.getvalue()
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", text)
    assert sorted(kernels) == [(name, arch) for name in sorted(names)]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert frames == [("0", "0", "0")] * len(names)
    assert "warning" not in text

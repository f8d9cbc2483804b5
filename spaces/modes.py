"""How code of the user's is run: in evaluation mode for a while, and without a word on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import nn

__all__ = ["evaluation_mode", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Send to standard error what other code prints: standard output is for a command's answer, which scripts read."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients; restore each module's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with (
            quiet(),
            torch.no_grad(),
        ):  # not inference_mode: what a layer may cache here must still be usable in training
            yield
    finally:
        for module, training in modes:
            module.training = training

"""A pass of the uncompressed network beside one of the compressed network, a layer at a time.

Nothing is assumed about what a forward does along the batch, so each network has a pass of its own. The uncompressed
one runs in a thread, which stops behind each layer and norm until it is asked for the next: never do both run at once,
and no more is held than what either network holds there. Both passes draw the same random numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

import torch
from torch import Tensor, nn

from layers import OvertoneError

__all__ = ["Ended", "OriginalPass", "Stop", "only_input", "random_state", "set_random_state"]


class Ended(BaseException):
    """The end of a pass before its last layer; no code of a network takes it for an error of its own."""


@dataclass(frozen=True)
class Stop:
    """A layer or norm that the uncompressed network has just run, by name, and what went in and came out."""

    name: str
    x: Tensor
    y: Tensor


class OriginalPass:
    """Passes of the uncompressed network, one after the other: `start`, `next` for each stop, and `end`.

    The network is in evaluation mode, and stops behind the modules of these names.
    """

    def __init__(self, network: nn.Module, names: Collection[str], device: torch.device) -> None:
        self.passed: set[str] = set()
        """Names of modules where it does not stop any more."""
        self._network = network
        self._device = device
        self._random_state = self._first_state = random_state(device)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="uncompressed")
        self._thread = 0
        self._pass: Future[None] | None = None
        modules = {name: network.get_submodule(name) for name in names}
        self._hooks = [
            module.register_forward_hook(self._stop_at(name), with_kwargs=True) for name, module in modules.items()
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._executor.shutdown()
        for hook in self._hooks:
            hook.remove()
        set_random_state(self._first_state, self._device)

    def start(self, images: Tensor) -> None:
        """Be ready for a pass; this thread draws from now on what each pass draws."""
        self._images = images
        self._stops: SimpleQueue[Stop | BaseException | None] = SimpleQueue()
        self._turn = threading.Semaphore(0)
        self._ending = False
        self._random_state = self._first_state
        set_random_state(self._first_state, self._device)

    def next(self, name: str) -> Stop:
        """Go on to the next stop, which must be behind this module; raise `OvertoneError` if it is not."""
        here = random_state(self._device)
        set_random_state(self._random_state, self._device)
        if self._pass is None:
            self._pass = self._executor.submit(self._run)
        else:
            self._turn.release()
        stop = self._stops.get()
        self._random_state = random_state(self._device)
        set_random_state(here, self._device)
        if isinstance(stop, BaseException):
            raise stop
        if stop is None or stop.name != name:
            found = "no other" if stop is None else repr(stop.name)
            raise OvertoneError(
                f"cannot calibrate a network that calls other layers once it is compressed: {name!r}, before {found}"
            )
        return stop

    def end(self) -> None:
        """End the pass where it is."""
        if self._pass is not None:
            self._ending = True
            self._turn.release()
            self._pass.result()
            self._pass = None

    @torch.no_grad()
    def _run(self) -> None:
        self._thread = threading.get_ident()
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
                self._network(self._images)
            self._stops.put(None)
        except Ended:
            pass
        except BaseException as error:  # goes on in the other thread
            self._stops.put(error)

    def _stop_at(self, name: str) -> Any:
        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            if threading.get_ident() != self._thread or name in self.passed:
                return
            self._stops.put(Stop(name, only_input(args, kwargs), y))
            self._turn.acquire()
            if self._ending:
                raise Ended

        return stop


def only_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of a module that takes one, by position or by name."""
    tensor: Tensor = next(iter([*args, *kwargs.values()]))
    return tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's global generators, of the CPU and of this device."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)

"""Where a network with int8 layers rounds its activations: a plan, made from one recorded forward pass.

Besides the inputs of int8 layers these are, so that integer kernels can run on both sides of each rounding:

- what an int8 convolution gives, behind the norm and the ReLU that follow it alone: they fold into its output;
- sums, concatenations and averages of rounded tensors, behind a ReLU that follows alone;
- what calls with the same values (max-pooling, padding with zeros) give, on the grid of their input.

The input of an int8 layer is rounded where it is made if a counted call makes it: all who read it read the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layers.integer.calls import Call, CallMode, Kind

__all__ = ["RoundingPlan", "plan_rounding"]

_VIEWS = frozenset(
    {
        *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "detach"),
        *("__getitem__", "clone", "to", "float", "dropout", "dropout1d", "dropout2d", "alpha_dropout", "view_as"),
        *("movedim", "swapaxes", "unflatten", "stochastic_depth"),
    }
)
"""Functions that are not counted and give the values that they get, in evaluation."""


@dataclass(frozen=True)
class RoundingPlan:
    """Plain data: which counted calls give rounded tensors, and on which grids."""

    calls: int
    """Counted calls of a forward pass."""
    grids: Mapping[int, int]
    """Number of the call -> row of the grid that its output is rounded to."""
    inputs: Mapping[str, int]
    """Layer -> row of the grid that its input is on already."""

    @property
    def rows(self) -> int:
        """Number of grids."""
        return len(set(self.grids.values()))


@dataclass
class _Event:
    kind: Kind
    inputs: list[int | None]
    """The calls that made the input tensors; None for others."""
    layer: nn.Module | None
    readers: list[int | None] = field(default_factory=list)
    """The calls that read the output; None for others."""


class _Recorder(CallMode):
    """A mode that notes which call reads what which other call made."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[_Event] = []
        self._makers: dict[int, int] = {}
        self._held: list[Tensor] = []

    def called(self, call: Call) -> Tensor:
        read = list(_tensors((*call.args, *call.kwargs.values())))
        activations = read[:1] if call.kind in ("layer", "norm") else read
        makers = [self._makers.get(id(x)) for x in activations]
        self.events.append(_Event(call.kind, makers, call.layer))
        self._mark(makers, call.number)
        result = self._fresh(call.result, read)
        self._made(result, call.number)
        return result

    def passed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        read, made = list(_tensors((*args, *kwargs.values()))), list(_tensors([result]))
        if not made:
            return result
        makers = [self._makers.get(id(x)) for x in read]
        if getattr(func, "__name__", "") in _VIEWS and isinstance(result, Tensor) and read:
            if result is not read[0] and makers[0] is not None:
                self._made(result, makers[0])
            return result
        self._mark(makers, None)
        for x in made:
            self._makers.pop(id(x), None)  # it was changed in place
        return result

    def end(self, outputs: Any) -> None:
        """Note that the network's outputs are read."""
        self._mark([self._makers.get(id(x)) for x in _tensors([outputs])], None)

    def _mark(self, makers: list[int | None], reader: int | None) -> None:
        for maker in makers:
            if maker is not None:
                self.events[maker].readers.append(reader)

    def _fresh(self, result: Tensor, read: list[Tensor]) -> Tensor:
        """Return another object for a tensor that was changed in place: who reads the old one reads nothing known."""
        if all(result is not x for x in read):
            return result
        self._makers.pop(id(result), None)
        return result.view_as(result)

    def _made(self, result: Tensor, number: int) -> None:
        self._held.append(result)  # else its id could be used again
        self._makers[id(result)] = number


def plan_rounding(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> RoundingPlan:
    """Return where a model rounds activations whose `layers`, by name, compute in int8; it runs once, in evaluation.

    The layers' own rounding must be off.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        recorder.end(model(images))
    return _Planner(recorder.events, {id(layer): name for name, layer in layers.items()}).plan()


class _Planner:
    def __init__(self, events: list[_Event], names: Mapping[int, str]) -> None:
        self._events = events
        self._names = names
        self._rounded: set[int] = set()
        """Calls whose output is rounded to a grid of its own."""

    def plan(self) -> RoundingPlan:
        for number, event in enumerate(self._events):
            if self._is_int8(event):
                self._round_input(event)
                if _is_convolution(event):
                    self._rounded.add(self._end(number))
        for number, event in enumerate(self._events):
            summed = event.kind in ("add", "concatenate", "average")
            if summed and event.inputs and all(self._row_source(made) is not None for made in event.inputs):
                self._rounded.add(self._end(number))
        rows = {number: row for row, number in enumerate(sorted(self._rounded))}
        sources = {number: self._row_source(number) for number in range(len(self._events))}
        grids = {number: rows[source] for number, source in sources.items() if source is not None}
        return RoundingPlan(len(self._events), grids, self._inputs(grids))

    def _inputs(self, grids: Mapping[int, int]) -> dict[str, int]:
        found: dict[str, set[int | None]] = {}
        for event in self._events:
            if self._is_int8(event):
                made = event.inputs[0]
                found.setdefault(self._names[id(event.layer)], set()).add(None if made is None else grids.get(made))
        return {name: row for name, (row, *more) in found.items() if row is not None and not more}

    def _is_int8(self, event: _Event) -> bool:
        return event.layer is not None and id(event.layer) in self._names

    def _round_input(self, event: _Event) -> None:
        made = event.inputs[0]
        if made is not None:
            self._rounded.add(self._values_source(made))

    def _values_source(self, number: int) -> int:
        """Return the call that made the values which a call with the same values gives."""
        event = self._events[number]
        made = event.inputs[0] if event.kind == "same_values" else None
        return number if made is None else self._values_source(made)

    def _row_source(self, number: int | None) -> int | None:
        """Return the rounded call whose grid a call's output is on, None if it is on none."""
        source = None if number is None else self._values_source(number)
        return source if source in self._rounded else None

    def _end(self, number: int) -> int:
        """Return the last of the calls that fold into this one's output: a norm behind a layer, then a ReLU."""
        event = self._events[number]
        reader = event.readers[0] if len(event.readers) == 1 else None
        if reader is None:
            return number
        kind = self._events[reader].kind
        folds = kind == "relu" or (kind == "norm" and event.kind == "layer")
        if not folds:
            return number
        return self._end(reader) if kind == "norm" else reader


def _is_convolution(event: _Event) -> bool:
    return getattr(event.layer, "shape", None) is not None and event.layer.shape.kind == "conv2d"  # type: ignore


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)

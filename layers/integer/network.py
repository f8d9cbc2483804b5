"""Networks with int8 layers: between the layers, too, they round activations as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from layers.errors import OvertoneError
from layers.integer.calls import ADDITIONS, Call, CallMode, Kind
from layers.integer.inputs import is_rounding
from layers.integer.kernels import Addition, Product, Sums, fold_norm, sums_of, with_sums
from layers.integer.rounding import activation_codes, round_activation
from layers.integer.sites import RoundingPlan
from layers.quantized import QuantizedLayer

__all__ = ["CountedNetwork", "IntegerNetwork", "int8_layers", "mark_calls", "round_activations"]


class CountedNetwork(nn.Module):
    """Mixin for a network's class: its forward pass runs in a `CallMode`."""

    def call_mode(self) -> CallMode | None:
        """Return the mode of a forward pass, None for one without."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network's own code in the mode."""
        mode = self.call_mode()
        if mode is None:
            return super().__call__(*args, **kwargs)
        with mode:
            outputs = super().__call__(*args, **kwargs)
        self.end(mode)
        return outputs

    def end(self, mode: CallMode) -> None:
        """Look at the mode of a forward pass that ended."""


class IntegerNetwork(CountedNetwork):
    """A network that rounds the activations that `rounding_plan` names, unless its layers do not round their inputs."""

    rounding_plan: RoundingPlan
    activation_grids: Tensor
    """Scale and zero point of each grid, (rows, 2)."""

    def call_mode(self) -> CallMode | None:
        """Return a mode that rounds, if the layers do."""
        if not is_rounding():
            return None
        return _Rounding(self.rounding_plan.grids, self.activation_grids, exact=not self.training)

    def end(self, mode: CallMode) -> None:
        """Raise `OvertoneError` unless the pass made as many counted calls as were planned."""
        if mode.calls != self.rounding_plan.calls:
            raise OvertoneError(
                "the network must make the same calls for every batch to compute in int8: "
                f"{self.rounding_plan.calls} of its functions were planned, {mode.calls} were called"
            )


class _MarkedNetwork(CountedNetwork):
    marker: Callable[[Tensor, int], Tensor]

    def call_mode(self) -> CallMode:
        """Return a mode that marks."""
        return _Marking(self.marker)


def int8_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the layers of a model that compute in int8 by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer) and layer.is_int8}


def round_activations(model: nn.Module, plan: RoundingPlan, grids: Tensor) -> None:
    """Make a network one that rounds as planned, in place; it stays an instance of its class.

    `grids` (rows, 2) are scales and zero points.
    """
    if not isinstance(model, IntegerNetwork):
        model.__class__ = _counted_class(IntegerNetwork, cast(Any, type(model)))
        assert isinstance(model, IntegerNetwork)
    model.rounding_plan = plan
    model.register_buffer("activation_grids", grids.detach().clone())


def mark_calls(model: nn.Module, marker: Callable[[Tensor, int], Tensor]) -> None:
    """Have a network, in place, exchange the output of each counted call for what `marker(output, number)` returns."""
    model.__class__ = _counted_class(_MarkedNetwork, cast(Any, type(model)))
    assert isinstance(model, _MarkedNetwork)
    model.marker = marker


class _Rounding(CallMode):
    def __init__(self, rows: Mapping[int, int], grids: Tensor, *, exact: bool) -> None:
        super().__init__()
        self._rows = rows
        self._exact = exact
        self._grids = grids.unbind()

    def sums(self, func: Any, args: tuple[Any, ...]) -> Sums | None:
        """Return the codes that an addition adds, which it may be about to overwrite."""
        if not self._exact or getattr(func, "__name__", "") not in ADDITIONS or len(args) != 2:
            return None
        one, other = (getattr(x, "integer_grid", None) for x in args)
        if one is None or other is None:
            return None
        codes = [activation_codes(x.detach(), grid).add_(grid[1]) for x, grid in zip(args, (one, other), strict=True)]
        return Addition((codes[0], codes[1]), (one, other))

    def called(self, call: Call) -> Tensor:
        row, result = self._rows.get(call.number), call.result
        if call.kind == "same_values":
            return result if row is None else _on_grid(result, self._grids[row])
        sums = sums_of(result) if call.kind in ("layer", "add") else _carried(call.kind, call.args, call.kwargs)
        if row is not None:
            return _on_grid(_rounded(result, self._grids[row], sums), self._grids[row])
        return result if sums is None else with_sums(result, sums)


def _rounded(x: Tensor, grid: Tensor, sums: Sums | None) -> Tensor:
    """Round a tensor, in evaluation as the kernel that has its sums."""
    if sums is None:
        return round_activation(x, grid)
    exact = sums.rounded(grid).to(x.dtype)
    if not x.requires_grad:
        return exact
    rounded = round_activation(x, grid)
    return rounded + (exact - rounded).detach()


def _on_grid(x: Tensor, grid: Tensor) -> Tensor:
    x.integer_grid = grid  # type: ignore[attr-defined]
    return x


def _carried(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sums | None:
    """Return the sums behind a norm or ReLU, which the codes' least value is."""
    sums = sums_of(args[0]) if args and isinstance(args[0], Tensor) else None
    if kind == "relu":
        return sums
    if kind != "norm" or not isinstance(sums, Product) or sums.factor is not None:
        return None
    given = dict(zip(_NORM, args, strict=False)) | kwargs
    if given.get("training") or given["running_mean"] is None:
        return None
    vectors: list[Any] = [given.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
    return fold_norm(sums, *vectors, eps=given.get("eps", 1e-5))


_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""Parameters of `torch.nn.functional.batch_norm`."""


class _Marking(CallMode):
    def __init__(self, marker: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self._marker = marker

    def called(self, call: Call) -> Tensor:
        return self._marker(call.result, call.number)


@cache
def _counted_class(mixin: Any, kind: Any) -> Any:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})

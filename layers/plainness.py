"""Which layers can be compressed: those that do what torch's class does, and nothing else.

A compressed layer takes the place of one that convolves or multiplies with the weights it stores. A subclass that
standardizes its weights, a hook, a replaced `forward` or a parametrization computes something else, so such a layer
stays as it is. A norm keeps its own class and code when it is compressed, so a `forward` of its own does not matter.
"""

from __future__ import annotations

from functools import cache

from torch import nn

from layers.form import is_norm

__all__ = ["kept_because"]

_KINDS = (nn.Conv2d, nn.Conv1d, nn.Linear)

_HARMLESS = frozenset(
    {
        *("__init__", "__repr__", "extra_repr", "reset_parameters", "__module__", "__qualname__", "__doc__"),
        *("__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__constants__", "__static_attributes__", "__firstlineno__", "__orig_bases__", "__parameters__"),
        *("__classcell__", "__classdictcell__", "__type_params__"),
    }
)
"""What a subclass may define and still compute what its base does."""

_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks"),
    *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def kept_because(layer: nn.Module) -> str:
    """Return why a convolution, linear layer or norm must stay as it is, or "" if it can be compressed."""
    replaced = sorted(name for name in vars(layer) if callable(getattr(type(layer), name, None)))
    if replaced:
        return f"its {replaced[0]!r} is replaced"
    if any(vars(layer).get(hooks) for hooks in _HOOKS):
        return "it has hooks"
    own = {*layer._parameters, *layer._buffers}
    if is_norm(layer):
        inside = any(True for child in layer.children() for _ in child.state_dict())
        return "it holds more than a norm's vectors" if inside or not own <= _NORM_VECTORS or _uneven(layer) else ""
    kind = next(kind for kind in _KINDS if isinstance(layer, kind))
    foreign = [cls for cls in type(layer).__mro__ if cls not in kind.__mro__]
    defined = sorted({name for cls in foreign for name in vars(cls)} - _HARMLESS)
    if defined:
        return f"its class {type(layer).__name__} has a {defined[0]!r} of its own"
    if not own <= {"weight", "bias"} or layer._modules:
        return "it holds more than a weight and a bias"
    if any(type(value) is not nn.Parameter for value in layer._parameters.values() if value is not None):
        return "its weight is no plain parameter"
    taken = sorted(name for name in vars(layer).keys() - _attributes(kind) if name in _names_of_compressed(kind))
    return f"its attribute {taken[0]!r} has a name that compression uses" if taken else ""


_NORM_VECTORS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})


def _uneven(norm: nn.Module) -> bool:
    """Return whether a norm's vectors have several lengths."""
    state = {**norm._parameters, **norm._buffers}
    return len({len(value) for value in state.values() if value is not None and value.dim()}) > 1


@cache
def _attributes(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names of the attributes that torch's own layer of this kind has."""
    return frozenset(vars(_smallest(kind)))


@cache
def _names_of_compressed(kind: type[nn.Module]) -> frozenset[str]:
    from layers.compress import compress_layer  # here, because it imports this module
    from layers.form import LayerForm

    return frozenset(dir(compress_layer(_smallest(kind), LayerForm())))


def _smallest(kind: type[nn.Module]) -> nn.Module:
    layer: nn.Module = nn.utils.skip_init(kind, 1, 1, *([1] if kind is not nn.Linear else []))
    return layer

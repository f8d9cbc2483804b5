"""The calibrated start: each compressed layer is fitted to what the uncompressed one computes, before any training.

Unlabeled images pass through the network once, in network order. At a series layer, coefficients are fitted so that
from the inputs which the compressed network really gives it, the layer makes the outputs that the uncompressed network
has there (`layers.calibration.series`), at a layer with templates these and their gains
(`layers.calibration.templates`): errors of earlier layers are mended as far as a later one can. Norms behind a
compressed layer then take the statistics of what reaches them. No label is read.

Both networks run as one: the batch holds every image twice, the first half in the uncompressed network, the second in
the compressed one; they differ in compressed layers and norms alone. A batch that is too large to be held at once is
cut into pieces, and each layer in turn is reached by all of them before any goes on: one pass of every image through
both networks costs about as much again for each layer and norm then.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from layers import CompressedConv1d, CompressedConv2d, OvertoneError, UsageError, compressed_layers
from layers.calibration.series import OutputRegression
from layers.calibration.templates import TemplateRegression
from trainers.evaluation import eval_mode

__all__ = ["calibrate"]

_PIECE_PIXELS = 1 << 19
"""Pixels of the images in one piece: 512 of 32 x 32, 10 of 224 x 224."""


def calibrate(model: nn.Module, baseline: nn.Module, images: Tensor) -> None:
    """Fit the compressed model in place, and re-estimate its norms, on normalized images (n, C, H, W).

    `baseline` is the network it was made from. The model is moved to the images' device. Raises `UsageError` for
    images that the network cannot take.
    """
    if not compressed_layers(model):
        return
    model.to(images.device)
    _check(model, images)
    count = max(1, _PIECE_PIXELS // (images.shape[2] * images.shape[3]))
    with eval_mode(model), _paired(model, baseline, images) as paired:
        _run(model, paired, images.split(count))


def _check(model: nn.Module, images: Tensor) -> None:
    if images.dim() != 4 or not len(images):
        raise UsageError(f"calibration images (={tuple(images.shape)}) must be (n, C, H, W), one or more.")
    try:
        with eval_mode(model):
            model(images[:1])
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"calibration images (={tuple(images.shape)}) do not fit the network: {reason}") from error


def _run(model: nn.Module, paired: "_PairedPass", pieces: Sequence[Tensor]) -> None:
    """Send pieces through in turns; one stops at the first module that has not seen all of them, the last goes on."""
    paired.pieces, piece = len(pieces), 0
    while True:
        try:
            model(torch.cat([pieces[piece], pieces[piece]]))
        except _Paused:
            piece = (piece + 1) % len(pieces)
        else:
            return


_Norm = nn.modules.batchnorm._BatchNorm


class _Paused(Exception):
    """A piece has reached a module that waits for the others."""


class _PairedPass:
    """What a pass shares: how many pieces there are, if it has met a compressed layer, which norm follows which."""

    def __init__(self) -> None:
        self.pieces, self.compressed_before = 1, False
        self.following: dict[nn.Module, nn.Module] = {}


class _PairedModule:
    """A module of the compressed network beside its original: halves of a batch go to one each."""

    def __init__(self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module) -> None:
        self.name, self.paired, self.module, self.original = name, paired, module, original
        self.seen = 0
        self._first: list[Tensor] = []

    def before(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Run the original, learn from both halves, and leave the second to the module."""
        first, second = inputs[0].chunk(2)
        outputs = self.original(first)
        if self.seen < self.paired.pieces:
            self.learn(second, first, outputs)
            self.seen += 1
            if self.seen < self.paired.pieces:
                raise _Paused
            self.settle()
        self._first.append(outputs)
        return (second,)

    def after(self, module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        """Both halves again."""
        return torch.cat([self._first.pop(), outputs])

    def learn(self, x: Tensor, originally: Tensor, outputs: Tensor) -> None:
        """See inputs in the compressed network, the original's for the same images, and the original's outputs."""

    def settle(self) -> None:
        """Change the module, once all pieces were seen."""


class _PairedLayer(_PairedModule):
    def __init__(self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module) -> None:
        super().__init__(name, paired, module, original)
        self._regression: OutputRegression | TemplateRegression | None = None
        if isinstance(module, CompressedConv2d) and module.template_mask is not None:
            self._regression = TemplateRegression(module)
        elif isinstance(module, CompressedConv2d) and module.form.basis is not None:
            self._regression = OutputRegression(module)

    def learn(self, x: Tensor, originally: Tensor, outputs: Tensor) -> None:
        self.paired.compressed_before = True
        if isinstance(self.module, CompressedConv1d):
            x, outputs = x.unsqueeze(-2), outputs.unsqueeze(-2)
        if self._regression is not None:
            self._regression.add(x, outputs)

    def settle(self) -> None:
        if self._regression is not None and isinstance(self.module, CompressedConv2d):
            dense = self.original.get_parameter("weight")
            weight = dense.view(len(dense), -1, *self.module.shape.kernel)
            try:
                if isinstance(self._regression, TemplateRegression):
                    self._regression.place(weight)
                else:
                    self.module.set_coefficients(self._regression.solve(self._importance()), weight)
            except OvertoneError as error:
                raise OvertoneError(f"layer {self.name!r}: {error}") from error
            self._regression = None

    def _importance(self) -> Tensor | None:
        """What a unit of squared error in each output costs behind the norm that follows, if one does."""
        norm = self.paired.following.get(self.original)
        if norm is None:
            return None
        variance = norm.get_buffer("running_var").double()
        scale = getattr(norm, "weight", None)
        return (1.0 if scale is None else scale.detach().square()) / (variance + getattr(norm, "eps", 0.0))


class _PairedNorm(_PairedModule):
    """Gives a norm behind compressed layers the mean and variance of what reaches it.

    The trained statistics are of far more images than are seen here, and help as a control variate does: how far those
    of the original's inputs on these images are off is known, and the compressed network's are off alike as far as
    their inputs go together, by the correlation r of a channel. Where nothing has changed (r = 1) the statistics stay;
    where nothing is left of the original (r = 0) they are those of these images. A channel that does not vary on these
    images in either network (behind dead inputs) has no correlation: its mean moves as the constant does.
    """

    def __init__(self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module) -> None:
        super().__init__(name, paired, module, original)
        self._count = 0
        self._sums: Tensor | float = 0.0

    def learn(self, x: Tensor, originally: Tensor, outputs: Tensor) -> None:
        now, before = (half.transpose(0, 1).flatten(1).double() for half in (x, originally))
        self._count += now.shape[1]
        sums = [now.sum(1), before.sum(1), now.square().sum(1), before.square().sum(1), (now * before).sum(1)]
        self._sums = self._sums + torch.stack(sums)

    def settle(self) -> None:
        if not self.paired.compressed_before:
            return
        now, before, square, square_before, product = torch.as_tensor(self._sums) / self._count
        spread, spread_before = _spread(square, now), _spread(square_before, before)
        constant = (spread == 0) & (spread_before == 0)
        slope = _quotient(product - now * before, spread_before).where(~constant, 1.0)
        shared = _quotient(slope.square() * spread_before, spread).clamp(0, 1)  # r^2
        mean, variance = (self.original.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
        unbias = self._count / max(self._count - 1, 1)
        known = _quotient(variance, spread_before * unbias).where(spread_before > 0, 1.0)
        self.module.get_buffer("running_mean").copy_(now + slope * (mean - before))
        found = (spread * unbias * known.clamp(min=0) ** shared).where(~constant, variance)
        self.module.get_buffer("running_var").copy_(found)


def _spread(square: Tensor, mean: Tensor) -> Tensor:
    """Variances; zero where they are no more than float32 leaves of a constant."""
    found = square - mean.square()
    return found.where(found > 1e-12 * square, 0.0)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Quotients, zero where y is not positive."""
    return torch.where(y > 0, x / y.where(y > 0, 1.0), 0.0)


@contextmanager
def _paired(model: nn.Module, baseline: nn.Module, images: Tensor) -> Iterator[_PairedPass]:
    """Hook every compressed layer and batch norm of the model to its original."""
    paired, hooks, modules = _PairedPass(), [], _differing(model)
    originals = {name: deepcopy(baseline.get_submodule(name)).to(images.device).eval() for name in modules}
    for layer, norm in _norms_behind(baseline, images[:1]).items():
        if layer in originals:
            paired.following[originals[layer]] = originals[norm]
    for name, module in modules.items():
        kind = _PairedNorm if _has_statistics(module) else _PairedLayer
        pair = kind(name, paired, module, originals[name])
        hooks += [module.register_forward_pre_hook(pair.before), module.register_forward_hook(pair.after)]
    try:
        yield paired
    finally:
        for hook in hooks:
            hook.remove()


def _differing(model: nn.Module) -> Mapping[str, nn.Module]:
    norms = {name: module for name, module in model.named_modules() if _has_statistics(module)}
    return {**compressed_layers(model), **norms}


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _Norm) and module.running_mean is not None


def _norms_behind(network: nn.Module, image: Tensor) -> dict[str, str]:
    """For each convolution whose output goes straight into a batch norm, by their names, that norm."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def remember(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            made[id(output)] = (name, output)  # the tensor too: else its id could be given again

        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if id(inputs[0]) in made:
                found[made[id(inputs[0])][0]] = name

        if _has_statistics(module):
            return module.register_forward_pre_hook(look)
        return module.register_forward_hook(remember)

    watched = [(n, m) for n, m in network.named_modules() if isinstance(m, _Norm | nn.Conv1d | nn.Conv2d)]
    hooks = [watch(name, module) for name, module in watched]
    try:
        with eval_mode(network):
            network(image.to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found

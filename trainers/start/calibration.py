"""The calibrated start: each compressed layer is fitted to what the uncompressed one computes, before any training.

Unlabeled images pass through the network once, in network order. In a series layer, the coefficients are fitted so that
the layer turns the inputs that the compressed network really gives it into the outputs that the uncompressed network
has there (`layers.calibration.series`). In a layer with templates, the templates and their gains are fitted
(`layers.calibration.templates`). So a later layer mends the errors of earlier ones as far as it can. Norms behind a
compressed layer then take the statistics of their new inputs (`trainers.start.norm_statistics`). No label is read.

Each network has a pass of its own, on the same images, and they take turns (`trainers.start.lockstep`). The compressed
one waits before each compressed layer and norm until the uncompressed one has run the same module; then the module is
fitted to what went in and came out there, and only then run:

    uncompressed:  x0 ---> original module ---> y0, stop           ---> ...
                                                |
                                           (x, x0, y0) fit
                                                |
    compressed:    x, wait ---------------------+---> module ---> y ---> ...

A batch that is too large is cut into pieces. Then every module is reached by all pieces before any piece goes on. A
piece that arrives before the others is observed and its passes end there, by the exception `Ended`; the last piece
finishes the fit and goes on to the next module, where it is the first. With two pieces and the modules A, B, C:

    piece 1:  A end
    piece 2:  A fit ---> B end
    piece 1:  A -------> B fit ---> C end
    piece 2:  A -------> B -------> C fit ---> end

So each layer and norm costs about one more pass of every image through both networks. A network that takes the images
of a batch apart, or changes their order, is given pieces of a single image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from layers import (
    CompressedConv1d,
    CompressedConv2d,
    CompressedLinear,
    OvertoneError,
    UsageError,
    compressed_layers,
)
from layers.blockfloat.format import BlockFormat
from layers.calibration.series import OutputRegression
from layers.calibration.templates import TemplateRegression
from layers.errors import first_line
from layers.integer.inputs import unrounded_inputs
from trainers.runtime.determinism import eval_mode
from trainers.start.batching import Batching
from trainers.start.lockstep import Ended, OriginalPass, only_input
from trainers.start.norm_statistics import InputMoments, NormStatistics, corrected_statistics

__all__ = ["Objective", "calibrate", "match_outputs"]

_COARSE = 8
"""Mantissa bits up to which filters that are stored as they are get fitted and rounded to their outputs."""
_PIECE_PIXELS = 1 << 19
"""Pixels of the images in one piece: 512 of 32 x 32, 10 of 224 x 224."""

Objective = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""From a layer of the original, its input x in the compressed network, its input x0 and output y0 in the original, to
the inputs and outputs that the compressed layer is fitted to; None leaves the layer as it is."""


def match_outputs(original: nn.Module, x: Tensor, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair that calibration fits: the compressed network's inputs, the uncompressed network's outputs."""
    return x, y0


def calibrate(
    model: nn.Module,
    baseline: nn.Module,
    images: Tensor,
    *,
    objective: Objective = match_outputs,
    statistics: NormStatistics = corrected_statistics,
) -> None:
    """Fit the compressed model in place, and re-estimate its norms, on normalized images (n, C, H, W).

    `baseline` is the network that it was made from. The model is moved to the images' device. Raises `UsageError` for
    images that the network cannot take.
    """
    if not compressed_layers(model):
        return
    model.to(images.device)
    _check_images(model, images)
    count = max(1, _PIECE_PIXELS // (images.shape[2] * images.shape[3]))
    original = deepcopy(baseline).to(images.device).eval()
    with eval_mode(model), unrounded_inputs(), _paired(model, original, images, objective, statistics) as paired:
        _run(model, paired, images, images.split(1 if paired.batching.reorders else count))


def _check_images(model: nn.Module, images: Tensor) -> None:
    if images.dim() != 4 or not len(images):
        raise UsageError(f"calibration images (={tuple(images.shape)}) must be (n, C, H, W), one or more")
    cuda = [images.device] if images.is_cuda else []
    try:
        with eval_mode(model), unrounded_inputs(), torch.random.fork_rng(devices=cuda):
            model(images[:1])
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise UsageError(
            f"calibration images (={tuple(images.shape)}) must fit the network: {first_line(error)}"
        ) from error


def _run(model: nn.Module, paired: "_PairedPass", images: Tensor, pieces: Sequence[Tensor]) -> None:
    """Run the pieces in turns: each stops at the first module that has not seen all pieces, the last one goes on."""
    index = 0
    while True:
        paired.pieces, paired.images = len(pieces), len(pieces[index])
        paired.original.start(pieces[index])
        try:
            model(pieces[index])
        except _TakenApart:
            pieces, index = images.split(1), 0
        except Ended:
            index = (index + 1) % len(pieces)
        else:
            return
        finally:
            paired.original.end()


_Norm = nn.modules.batchnorm._BatchNorm


class _TakenApart(Ended):
    """A module gets but a part of a piece at a time."""


class _PairedPass:
    """State of a paired pass that its modules share."""

    def __init__(self, original: OriginalPass, batching: Batching, total: int) -> None:
        self.original = original
        self.batching = batching
        self.total = total
        """Images of the batch."""
        self.pieces = 1
        """Pieces of the batch."""
        self.images = 1
        """Images of the piece that runs."""
        self.compressed_before = False
        """Whether a compressed layer has been reached."""
        self.norm_behind: dict[nn.Module, nn.Module] = {}
        """The norm behind a layer, both of the original."""


class _PairedModule:
    """A module of the compressed network beside its original."""

    def __init__(self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module) -> None:
        self.name = name
        self.paired = paired
        self.module = module
        self.original = original
        self._pieces_seen = 0

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Observe a piece in both networks; end its pass if others are to come, else change the module."""
        if self.name in self.paired.original.passed:
            return
        x, there = only_input(args, kwargs), self.paired.original.next(self.name)
        if x.shape != there.x.shape:
            raise OvertoneError(
                f"layer {self.name!r}: cannot calibrate it on inputs {tuple(x.shape)}, {tuple(there.x.shape)} without "
                "compression"
            )
        if self.paired.images > 1 and self.paired.batching.splits(self.name, x, self.paired.images):
            self._pieces_seen = 0
            self.begin()
            raise _TakenApart
        self.observe(x, there.x, there.y)
        self._pieces_seen += 1
        if self._pieces_seen < self.paired.pieces:
            raise Ended
        self.finish()
        self.paired.original.passed.add(self.name)

    def begin(self) -> None:
        """Forget all pieces."""

    def observe(self, x: Tensor, original_x: Tensor, original_outputs: Tensor) -> None:
        """Take in a piece: inputs in the compressed network and in the original, and the original's outputs."""

    def finish(self) -> None:
        """Change the module, after all pieces were observed."""


class _PairedLayer(_PairedModule):
    def __init__(
        self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module, objective: Objective
    ) -> None:
        super().__init__(name, paired, module, original)
        self._objective = objective
        self.begin()

    def begin(self) -> None:
        self._regression: OutputRegression | TemplateRegression | None = None
        if isinstance(self.module, CompressedConv2d) and self.module.template_mask is not None:
            self._regression = TemplateRegression(self.module)
        elif isinstance(self.module, CompressedConv2d) and self.module.form.basis is not None:
            self._regression = OutputRegression(self.module)
        elif isinstance(self.module, CompressedConv2d | CompressedLinear) and _is_coarse(self.module):
            self._regression = OutputRegression(self.module, images=self.paired.total)

    def observe(self, x: Tensor, original_x: Tensor, original_outputs: Tensor) -> None:
        self.paired.compressed_before = True
        pair = self._objective(self.original, x, original_x, original_outputs)
        if pair is None:
            self._regression = None
        if self._regression is None or pair is None:
            return
        inputs, outputs = pair
        if isinstance(self.module, CompressedConv1d):
            inputs = inputs.unsqueeze(-2)
            outputs = outputs.unsqueeze(-2)
        self._regression.add(inputs, outputs)

    def finish(self) -> None:
        try:
            if isinstance(self._regression, TemplateRegression):
                dense = self.original.get_parameter("weight")
                self._regression.apply(dense.view(len(dense), -1, *self._regression.layer.shape.kernel))
            elif self._regression is not None:
                coefficients = self._regression.solve(self._importance())
                self._regression.layer.set_coefficients(self._regression.rounded(coefficients))
        except OvertoneError as error:
            raise OvertoneError(f"layer {self.name!r}: {error}") from error
        self._regression = None

    def _importance(self) -> Tensor | None:
        """Return the cost of a unit of squared error in each output behind the norm that follows, None without one."""
        norm = self.paired.norm_behind.get(self.original)
        if norm is None:
            return None
        variance = norm.get_buffer("running_var").double()
        scale = getattr(norm, "weight", None)
        return (1.0 if scale is None else scale.detach().square()) / (variance + getattr(norm, "eps", 0.0))


def _is_coarse(layer: CompressedConv2d | CompressedLinear) -> bool:
    """Return whether rounding a layer's weights changes its outputs by more than next to nothing."""
    form = layer.form.weight_format
    return isinstance(form, BlockFormat) and form.bits <= _COARSE


class _PairedNorm(_PairedModule):
    """Gives a norm behind compressed layers the mean and variance of its new inputs."""

    def __init__(
        self, name: str, paired: _PairedPass, module: nn.Module, original: nn.Module, statistics: NormStatistics
    ) -> None:
        super().__init__(name, paired, module, original)
        self._statistics = statistics
        self.begin()

    def begin(self) -> None:
        self._count = 0
        self._sums: Tensor | float = 0.0

    def observe(self, x: Tensor, original_x: Tensor, original_outputs: Tensor) -> None:
        new, old = (half.transpose(0, 1).flatten(1).double() for half in (x, original_x))
        self._count += new.shape[1]
        sums = [new.sum(1), old.sum(1), new.square().sum(1), old.square().sum(1), (new * old).sum(1)]
        self._sums = self._sums + torch.stack(sums)

    def finish(self) -> None:
        if not self.paired.compressed_before:
            return
        mean, original_mean, square, original_square, product = torch.as_tensor(self._sums) / self._count
        moments = InputMoments(
            count=self._count,
            mean=mean,
            original_mean=original_mean,
            square=square,
            original_square=original_square,
            product=product,
        )
        trained = (self.original.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
        new_mean, new_variance = self._statistics(moments, *trained)
        self.module.get_buffer("running_mean").copy_(new_mean)
        self.module.get_buffer("running_var").copy_(new_variance)


@contextmanager
def _paired(
    model: nn.Module, original: nn.Module, images: Tensor, objective: Objective, statistics: NormStatistics
) -> Iterator[_PairedPass]:
    """Attach every compressed layer and batch norm of the model to its original, inside the block."""
    modules = _differing_modules(model)
    batching = Batching(original, modules, images)
    hooks: list[RemovableHandle] = []
    with OriginalPass(original, modules, images.device) as passes:
        paired = _PairedPass(passes, batching, len(images))
        for layer, norm in _norms_behind(original, images[:1]).items():
            if layer in modules:
                paired.norm_behind[original.get_submodule(layer)] = original.get_submodule(norm)
        for name, module in modules.items():
            there = original.get_submodule(name)
            pair: _PairedModule
            if _has_statistics(module):
                pair = _PairedNorm(name, paired, module, there, statistics)
            else:
                pair = _PairedLayer(name, paired, module, there, objective)
            hooks.append(module.register_forward_pre_hook(pair.pre_hook, with_kwargs=True))
        try:
            yield paired
        finally:
            for hook in hooks:
                hook.remove()


def _differing_modules(model: nn.Module) -> Mapping[str, nn.Module]:
    norms = {name: module for name, module in model.named_modules() if _has_statistics(module)}
    return {**compressed_layers(model), **norms}


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _Norm) and module.running_mean is not None


def _norms_behind(network: nn.Module, image: Tensor) -> dict[str, str]:
    """Return, for each convolution whose output goes straight into a batch norm, by its name, the norm's name."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    norms: dict[str, str] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def remember_output(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            outputs[id(output)] = (name, output)  # the tensor too: else its id could be used again

        def find_source(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if id(inputs[0]) in outputs:
                source, _ = outputs[id(inputs[0])]
                norms[source] = name

        if _has_statistics(module):
            return module.register_forward_pre_hook(find_source)
        return module.register_forward_hook(remember_output)

    watched = [(n, m) for n, m in network.named_modules() if isinstance(m, _Norm | nn.Conv1d | nn.Conv2d)]
    hooks = [watch(name, module) for name, module in watched]
    try:
        with eval_mode(network):
            network(image.to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return norms

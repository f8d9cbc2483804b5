"""A compressed network as a `torch.export` program that holds the packed bytes.

The one large tensor of the program is the payload of the packed file. Its graph decodes the bytes and builds filters by
the layers' own code, in plain operators, so that PyTorch alone runs it. Run as it is it builds them at each call;
`load_program` builds them once.
"""

from __future__ import annotations

import copy
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.fx.experimental.const_fold import split_const_subgraphs
from torch.fx.passes.dialect.common.cse_pass import CSEPass, get_CSE_banned_ops

from layers import CompressedConv2d, CompressedLinear, OvertoneError, compressed_layers, join_state, pack_state
from layers.series.allocation import support_mask
from spaces.portable.network import portable_model
from spaces.portable.payload_decoder import PayloadDecoder

__all__ = ["StoredNetwork", "load_program", "save_program"]

_FiltersOf = CompressedConv2d | CompressedLinear


class StoredNetwork(nn.Module):
    """A compressed network that has its payload, (`size_bytes`,) uint8, and builds all else of it at each call."""

    payload: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("payload", join_state(pack_state(model)))
        self._decoder = PayloadDecoder(model)
        self._network = (portable_model(model),)  # in a tuple, so that none of its tensors is stored
        bases: dict[object, Tensor] = {}
        filtered = {name: layer for name, layer in compressed_layers(model).items() if isinstance(layer, _FiltersOf)}
        self._builders = {name: _Builder(layer, bases) for name, layer in filtered.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        (network,) = self._network
        tensors = self._decoder.decode(self.payload)
        for name, builder in self._builders.items():
            prefix = f"{name}."
            stored = {f"layer.{key[len(prefix) :]}": tensors.pop(key) for key in [*tensors] if key.startswith(prefix)}
            filters, bias = functional_call(builder, stored, ())
            tensors |= {f"{name}.filters": filters} | ({} if bias is None else {f"{name}.bias": bias})
        logits: Tensor = functional_call(network, tensors, (images,), tie_weights=False)
        return logits


class _Builder(nn.Module):
    """Builds filters and bias of a layer from its stored tensors, which are rounded already."""

    def __init__(self, layer: _FiltersOf, bases: dict[object, Tensor]) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).eval()
        self.layer.form = replace(
            layer.form, bits=None, scale=None, exponent_block=1, exponent_axis="flat", vector_bits=None
        )
        if isinstance(self.layer, CompressedConv2d) and self.layer.phi_y is not None:
            for name in ("phi_y", "phi_x"):  # equal ones are stored once
                basis = getattr(self.layer, name)
                setattr(self.layer, name, bases.setdefault((layer.form.basis, basis.shape), basis))

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return filters (N, ...) and bias (N,)."""
        layer = self.layer
        if isinstance(layer, CompressedConv2d) and layer.support_index is not None:
            mask = support_mask(layer.frequency_support, layer.shape.kernel)
            layer.support_index = torch.nonzero_static(mask, size=len(layer.coefficients)).squeeze(1)
        return layer.filters(), layer.rounded_bias()


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program without what tells only how it was made: stack traces, module paths, example inputs."""
    _shorten(program.graph_module)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    program._example_inputs = None
    raw = BytesIO()
    torch.export.save(program, raw)
    with zipfile.ZipFile(raw) as archive, zipfile.ZipFile(path, "w") as out:
        for entry in archive.infolist():
            out.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry), zipfile.ZIP_DEFLATED, compresslevel=9)


def _shorten(module: fx.GraphModule) -> None:
    """Compute equal values once, and drop assertions about types, which hold."""
    for node in [*module.graph.nodes]:
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    operators = [node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if not any(operator._schema.is_mutable for operator in operators):  # or equal calls may differ
        shortened = CSEPass(get_CSE_banned_ops())(module)
        assert shortened is not None
        module.graph = shortened.graph_module.graph
    module.graph.eliminate_dead_code()
    module.recompile()


def load_program(path: Path) -> nn.Module:
    """Return the network of a program's file, in which all that does not depend on images is computed once.

    Like `torch.export.load`, which it calls, it must not be given files of strangers.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise OvertoneError("it is not a program of torch.export")
    with _quiet():
        program = torch.export.load(path).module()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)  # about attributes that it adds afterwards
        folded = split_const_subgraphs(program)
        folded.run_folding()
    output = folded.graph.output_node()
    (outputs,) = output.args
    if not isinstance(outputs, tuple) or len(outputs) != 1:
        raise OvertoneError("it must give logits alone")
    output.args = outputs
    folded.graph.set_codegen(fx.graph.CodeGen())  # which takes and gives tensors as they are
    return fx.GraphModule(folded, folded.graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's note about a failure, a stack trace, from users; the failure itself is raised."""
    logger = logging.getLogger("torch.export")
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before

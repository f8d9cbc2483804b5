"""A compressed network as a `torch.export` program that holds the packed bytes.

The one large tensor of the program is the payload of the packed file. Its graph decodes the bytes and builds filters by
the layers' own code, in plain operators, so that PyTorch alone runs it. Run as it is it builds them at each call;
`load_program` builds them once.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
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

from layers import CompressedConv2d, CompressedNorm, OvertoneError, compressed_layers, join_state, pack_state
from layers.references import copy_with_layers
from layers.series.allocation import support_mask
from spaces.portable.payload_decoder import PayloadDecoder

__all__ = ["StoredNetwork", "load_program", "save_program"]


class StoredNetwork(nn.Module):
    """A compressed network that has its payload, (`size_bytes`,) uint8, and builds all else of it at each call."""

    payload: Tensor
    grids: Tensor | None
    """Scale and zero point of each activation in int8, (rows, 2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("payload", join_state(pack_state(model)))
        self._decoder = PayloadDecoder(model)
        network = _unrounded(model)
        self._network = (network,)  # in a tuple, so that none of its tensors is stored
        grids = {name: tensor for name, tensor in network.named_buffers() if _is_grid(name)}
        self._rows = {name: tensor.shape for name, tensor in grids.items()}
        self.register_buffer("grids", torch.cat([grid.view(-1, 2) for grid in grids.values()]) if grids else None)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        (network,) = self._network
        tensors = self._decoder.decode(self.payload)
        for name, layer in compressed_layers(network).items():
            if isinstance(layer, CompressedConv2d) and layer.support_index is not None:
                mask = support_mask(tensors[f"{name}.frequency_support"], layer.shape.kernel)
                index = torch.nonzero_static(mask, size=len(layer.coefficients))
                tensors[f"{name}.support_index"] = index.squeeze(1)
        if self.grids is not None:
            pieces = self.grids.split([shape.numel() // 2 for shape in self._rows.values()])
            tensors |= {
                name: piece.view(shape) for (name, shape), piece in zip(self._rows.items(), pieces, strict=True)
            }
        logits: Tensor = functional_call(network, tensors, (images,), tie_weights=False)
        return logits


def _is_grid(name: str) -> bool:
    return name.rpartition(".")[2] in ("input_grid", "activation_grids")


def _unrounded(model: nn.Module) -> nn.Module:
    """Return a copy, in evaluation, that takes its tensors' values as they are: they are rounded already."""

    def make(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        norms = {name: modules[name] for name in compressed_layers(model)}
        return {name: norm.plain() for name, norm in norms.items() if isinstance(norm, CompressedNorm)}

    network = copy_with_layers(model, make).eval()
    bases: dict[object, Tensor] = {}
    for layer in compressed_layers(network).values():
        basis = layer.form.basis
        layer.form = replace(layer.form, bits=None, exponent_axis="flat", scale=None, vector_bits=None)
        if isinstance(layer, CompressedConv2d):
            layer.execution = "dense"
            for name in ("phi_y", "phi_x") if layer.phi_y is not None else ():
                sampled = getattr(layer, name)  # equal ones are stored once
                setattr(layer, name, bases.setdefault((basis, sampled.shape), sampled))
    return network


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

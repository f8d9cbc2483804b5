"""Programs of `torch.export` that hold the packed bytes."""

import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import LayerForm, OvertoneError, compress_model
from layers.blockfloat import BlockFormat, quantize
from spaces import load_model, save_model
from spaces.models import describe_module
from spaces.portable import StoredNetwork, write
from tests.docs.pages import ROOT
from trainers.start.activations import scale_activations


class _Own(nn.Module):
    """A network that calls a layer twice, writes in place, and has a tensor of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(8, 12, 3)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.5))
        self.register_buffer("shift", torch.ones(12, 1, 1), persistent=False)
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu_()
        x = self.again(self.again(x)).relu_()
        return self.linear((self.last(x) * self.scale + self.shift).mean((2, 3)))


CARD = {"model": describe_module(_Own()), "classes": 5, "channels": 3, "image_size": 8}
_BITS = {"bits": 6, "exponent_block": 8}
FORMS = {
    "first": LayerForm(bits=8, activation_bits=8),
    "norm": LayerForm(vector_bits=9),
    "again": LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter", **_BITS, vector_bits=8),
    "last": LayerForm(templates=5, transform="affine", assignment="residual", groups=2, **_BITS),
    "linear": LayerForm(bits=4, exponent_block=5, exponent_axis="filter"),
}


_INT8 = {name: {"arithmetic": "int8"} for name in ("first", "last", "linear")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed network of one's own, with a layer of each kind."""
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    save_model(compress_model(_Own(), FORMS).eval(), path, card=CARD)
    return path


@pytest.fixture(scope="module")
def program(packed: Path) -> Path:
    write(packed, packed.with_name("model.pt2"), format="pt2", card=CARD, model=_Own())
    return packed.with_name("model.pt2")


def _expected(packed: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return load_model(packed, model=_Own())(x)


def test_the_loaded_program_gives_the_packed_models_logits_for_any_batch(
    packed: Path, program: Path, images: Callable[..., Tensor]
) -> None:
    folded = load_model(program).eval()
    for count in (1, 7):
        x = images(count, 3, 8, 8)
        torch.testing.assert_close(folded(x), _expected(packed, x), rtol=1e-4, atol=1e-4)
    assert not any("payload" in name for name in folded.state_dict())
    operators = [node.target for node in folded.graph.nodes if node.op == "call_function"]
    assert not {torch.ops.aten.split_with_sizes.default, torch.ops.aten.index_copy.default} & set(operators)


def test_a_process_without_overtone_runs_it_bare_and_as_the_page_says(
    packed: Path, program: Path, images: Callable[..., Tensor], tmp_path: Path
) -> None:
    (lines,) = re.findall(
        r"```python\n(import torch\n.*?const_fold.*?)```", (ROOT / "docs/export.md").read_text(), re.S
    )
    x = images(5, 3, 8, 8)
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pt2").write_bytes(program.read_bytes())
    code = "import sys, safetensors.torch\nimages = safetensors.torch.load_file('x.safetensors')['x']\n" + lines
    code += "bare = torch.export.load('model/model.pt2').module()(images)\n"
    code += "assert not {'overtone', 'layers', 'spaces'} & {name.partition('.')[0] for name in sys.modules}\n"
    code += "safetensors.torch.save_file({'bare': bare, 'folded': logits}, 'y.safetensors')"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    for logits in safetensors.torch.load_file(tmp_path / "y.safetensors").values():
        torch.testing.assert_close(logits, _expected(packed, x), rtol=1e-4, atol=1e-4)


def test_the_file_is_little_more_than_the_payload(packed: Path, program: Path) -> None:
    payload = len(torch.export.load(program).state_dict["payload"])
    assert payload < packed.stat().st_size
    assert program.stat().st_size < payload + 4_000 + 3_000 * len(FORMS)


_SHAPES = {"0": (3, 12, 12), "1": (8, 12, 12), "2": (3, 12)}
_IN_BLOCKS = LayerForm(bits=5, exponent_block=8, activation_bits=4, activation_block=3)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("form", [_IN_BLOCKS, LayerForm(basis="chebyshev", harmonics=(1, 2), vector_bits=6)])
def test_layers_give_the_same_outputs_however_they_pad(
    images: Callable[..., Tensor], mode: str, form: LayerForm
) -> None:
    layers = (
        nn.Conv2d(3, 8, 3, padding=1, bias=False, padding_mode=mode),
        nn.Conv2d(8, 8, 4, padding="same" if mode == "zeros" else 2, stride=1, groups=2, padding_mode=mode),
        nn.Conv1d(3, 4, 5, padding=2, padding_mode=mode),
    )
    for (_, shape), layer in zip(_SHAPES.items(), layers, strict=True):
        compressed = compress_model(nn.Sequential(layer), {"0": form}).eval()
        x = images(5, *shape)
        with torch.no_grad():
            torch.testing.assert_close(StoredNetwork(compressed)(x), compressed(x), rtol=1e-5, atol=1e-6)


class _Rounding(nn.Module):
    def __init__(self, *forms: BlockFormat) -> None:
        super().__init__()
        self.forms = forms

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(quantize(x, form) for form in self.forms)


def test_rounding_is_exported_bit_for_bit(rng: random.Random, generator: torch.Generator) -> None:
    forms = [BlockFormat(bits=rng.randint(1, 16), exponent_bits=bits) for bits in (3, 7)]
    forms += [BlockFormat(bits=rng.randint(1, 16), block=block, axis="channel") for block in (2, 3, 16)]
    example = (torch.zeros(2, 20, 4, 4),)
    with torch.no_grad():
        program = torch.export.export(_Rounding(*forms), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(9, 20, 4, 4, generator=generator)
    x *= torch.exp2(torch.randint(-140, 128, (9, 1, 4, 4), generator=generator).float())
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3.4028235e38, -(2.0**64)])
    x.view(-1)[torch.randint(x.numel(), (8,), generator=generator)] = special
    for rounded, form in zip(program.module()(x), forms, strict=True):
        expected = quantize(x, form)
        assert torch.equal(rounded.isnan(), expected.isnan())
        assert torch.equal(rounded.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))


def test_layers_in_int8_are_exported_to_the_bit(
    fill: Callable[[nn.Module], nn.Module], images: Callable[..., Tensor], tmp_path: Path
) -> None:
    model = compress_model(fill(_Own()), {name: replace(form, **_INT8.get(name, {})) for name, form in FORMS.items()})
    scale_activations(model, images(8, 3, 8, 8))
    save_model(model.eval(), tmp_path / "m.safetensors", card=CARD)
    write(tmp_path / "m.safetensors", tmp_path / "m.pt2", format="pt2", card=CARD, model=_Own())
    x = images(7, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m.pt2")(x), model(x))


def test_other_files_are_refused_in_one_sentence(program: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(OvertoneError, match=r"^cannot read the program '.*cut\.pt2': .+[^.]$"):
        load_model(cut)
    with pytest.raises(OvertoneError, match=r"^cannot read the program '.*gone\.pt2': .+$"):
        load_model(tmp_path / "gone.pt2")
    other = torch.export.export(nn.Identity(), (torch.zeros(2),))
    torch.export.save(other, tmp_path / "other.pt2")
    assert torch.equal(load_model(tmp_path / "other.pt2")(torch.ones(2)), torch.ones(2))


def test_no_entry_tells_how_the_program_was_made(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    assert not any(name.endswith(".pt") and content for name, content in entries.items())
    for name, content in entries.items():
        for trace in (b'File \\"', b"site-packages", b".py", bytes(ROOT), b"nn_module_stack"):
            assert trace not in content, name

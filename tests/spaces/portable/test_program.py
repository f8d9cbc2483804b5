"""Programs of `torch.export` that hold the packed bytes."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import LayerForm, OvertoneError, compress_model
from spaces import load_model, save_model
from spaces.models import describe_module
from spaces.portable import write
from tests.docs.pages import ROOT


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

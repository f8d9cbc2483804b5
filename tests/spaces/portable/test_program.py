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
from spaces import load_model
from spaces.portable import write
from spaces.portable.program import StoredNetwork, load_program, save_program
from tests.docs.pages import ROOT
from tests.spaces.mixed import CARD, save_mixed


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed ResNet-8 with every kind of compression, on 8x8 images of one channel."""
    return save_mixed(tmp_path_factory.mktemp("packed") / "trial.safetensors")


@pytest.fixture(scope="module")
def program(packed: Path) -> Path:
    write(packed, packed.with_name("model.pt2"), format="pt2", card=CARD)
    return packed.with_name("model.pt2")


def test_the_loaded_program_gives_the_packed_models_logits_for_any_batch(
    packed: Path, program: Path, images: Callable[..., Tensor]
) -> None:
    folded, model = load_model(program).eval(), load_model(packed)
    with torch.no_grad():
        for count in (1, 7):
            x = images(count, 1, 8, 8)
            torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert not any("payload" in name for name in folded.state_dict())
    operators = [node.target for node in folded.graph.nodes if node.op == "call_function"]
    assert not {torch.ops.aten.split_with_sizes.default, torch.ops.aten.index_copy.default} & set(operators)


def test_a_process_without_overtone_runs_it_bare_and_as_the_page_says(
    packed: Path, program: Path, images: Callable[..., Tensor], tmp_path: Path
) -> None:
    (lines,) = re.findall(
        r"```python\n(import torch\n.*?const_fold.*?)```", (ROOT / "docs/export.md").read_text(), re.S
    )
    x = images(5, 1, 8, 8)
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pt2").write_bytes(program.read_bytes())
    code = "import sys, safetensors.torch\nimages = safetensors.torch.load_file('x.safetensors')['x']\n" + lines
    code += "bare = torch.export.load('model/model.pt2').module()(images)\n"
    code += "assert not {'overtone', 'layers', 'spaces'} & {name.partition('.')[0] for name in sys.modules}\n"
    code += "safetensors.torch.save_file({'bare': bare, 'folded': logits}, 'y.safetensors')"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    with torch.no_grad():
        expected = load_model(packed)(x)
    for logits in safetensors.torch.load_file(tmp_path / "y.safetensors").values():
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_file_is_little_more_than_the_payload(packed: Path, program: Path) -> None:
    payload = len(torch.export.load(program).state_dict["payload"])
    assert payload < packed.stat().st_size
    assert program.stat().st_size < payload + 25_000


class _Own(nn.Module):
    """A network that calls a layer twice, writes in place, and has a tensor of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.alias = self.again
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.register_buffer("shift", torch.ones(8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()
        x = self.alias(self.again(x)).relu_()
        return (x * self.scale + self.shift).mean((2, 3))


def test_a_network_of_ones_own_may_share_layers_and_write_in_place(generator: torch.Generator, tmp_path: Path) -> None:
    form = LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter", bits=6, exponent_block=8)
    model = compress_model(_Own(), {"first": LayerForm(bits=8), "again": form}).eval()
    x = torch.randn(4, 3, 8, 8, generator=generator)
    with torch.no_grad():
        save_program(torch.export.export(StoredNetwork(model).eval(), (x,)), tmp_path / "own.pt2")
        torch.testing.assert_close(load_program(tmp_path / "own.pt2")(x), model(x), rtol=1e-4, atol=1e-4)


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

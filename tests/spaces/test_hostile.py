"""Packed files from strangers: any bytes give one sentence or a network that runs, in memory of the file's scale."""

import json
import random
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision  # noqa: F401  (first, so that its memory is not counted as a file's)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from layers import LayerForm, OvertoneError, compress_model, pack_state
from spaces import build_model, load_model, read_card, save_model
from spaces.meta_device import build_on_meta, convert_layers, materialize
from trainers.start.activations import scale_activations

CARD = {"model": "resnet8", "classes": 10, "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.3], "study": "s"}
CALLS = 30
"""Counted calls of a ResNet-8."""
INT8 = {"conv1": LayerForm(arithmetic="int8"), "layer1.0.conv2": LayerForm(bits=4, arithmetic="int8")}
FORMS: list[dict[str, LayerForm]] = [
    {"linear": LayerForm(bits=4, exponent_block=7), "conv1": LayerForm(bits=3, scale="bfloat16")},
    {
        "conv1": LayerForm(basis="cosine", harmonics=(2, 3), bits=6),
        "layer2.0.conv1": LayerForm(basis="chebyshev", harmonics=(2, 2), allocation="filter", bits=7),
        "layer3.0.conv1": LayerForm(basis="chebyshev@endpoint", harmonics=(1, 2), allocation="filter"),
    },
    {
        "layer1.0.conv2": LayerForm(templates=3, transform="scalar"),
        "layer3.0.conv2": LayerForm(
            basis="cosine",
            harmonics=(2, 1),
            templates=9,
            groups=2,
            transform="scalar",
            assignment="residual",
            bits=8,
            exponent_block=16,
        ),
    },
    {
        "layer1.0.conv2": LayerForm(templates=3, groups=2, transform="affine", assignment="residual", bits=6),
        "layer2.0.conv2": LayerForm(templates=5, transform="rotation"),
        "layer3.0.conv2": LayerForm(templates=5, transform="zero"),
        "bn1": LayerForm(vector_bits=8),
        "linear": LayerForm(vector_bits=4),
    },
]
JUNK: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 16, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308, -1.0, "", "x" * 300),
    *(
        "é\ud800\n\t\0",
        "U8",
        "F4",
        "F64",
        "BOOL",
        "resnet20",
        "vgg16",
        "resnet18",
        "googlenet",
        "os:system",
        "spaces.models:x",
    ),
    *(
        "cosine",
        "filter",
        "scalar",
        "residual",
        "linear",
        "bn1",
        "layer1",
        [],
        {},
        [[]],
        [1],
        [1, 1],
        [0, 64],
        [3, 3],
        {"bits": 4},
    ),
    *([2**40, 2**40], [0, 2**63], float("nan"), float("inf"), [[[[[[[[]]]]]]]]),
]


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the payload."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def joined(header: Any, payload: bytes) -> bytes:
    text = json.dumps(header, ensure_ascii=True).encode()
    return len(text).to_bytes(8, "little") + text + payload


def edit(value: Any, rng: random.Random) -> Any:
    """The JSON value with one change somewhere inside."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, other = rng.choice(keys), rng.choice(keys)
        changed = value.copy()
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[key], changed[other] = changed[other], changed[key]
            case 2 if isinstance(value, dict):
                changed[rng.choice([*map(str, JUNK), "bits", "layers", "overtone"])] = changed[key]
            case _:
                changed[key] = edit(changed[key], rng)
        return changed
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 8, -8, 4096])
    return rng.choice(JUNK)


def flip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, rather in the header."""
    changed, end = bytearray(data), rng.choice([8, 200, 8 + int.from_bytes(data[:8], "little"), len(data)])
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        changed[rng.randrange(end)] = rng.choice([0, 255, 34, 44, 48, 57, 91, 93, 123, 125, rng.randrange(256)])
    return bytes(changed)


def cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    end = rng.choice([rng.randrange(len(data)), rng.randrange(100), len(data) - rng.randrange(1, 9)])
    return data[:end] if rng.random() < 0.7 else data + rng.randbytes(rng.randrange(1, 9))


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    header, payload = parts(data)
    theirs, rest = parts(other)
    where = rng.randrange(min(len(data), len(other)))
    return rng.choice([data[:where] + other[where:], joined(header, rest), joined({**header, **theirs}, payload)])


def change_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    header, payload = parts(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        header = edit(header, rng)
    return joined(header, payload)


def change_card(data: bytes, other: bytes, rng: random.Random) -> bytes:
    header, payload = parts(data)
    card = json.loads(header["__metadata__"]["overtone"])
    for _ in range(rng.choice([1, 1, 2, 4])):
        card = edit(card, rng)
    text = json.dumps(card)
    if rng.random() < 0.05:
        text = text.replace("{", rng.choice(['{"bits": 4, ', "[" * 5000, '{"model": "resnet8", ']), 1)
    return joined({**header, "__metadata__": {"overtone": text}}, payload)


def change_payload(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Another payload of the same length: other values, other indices."""
    header, payload = parts(data)
    _, entry = rng.choice([pair for pair in header.items() if pair[0] != "__metadata__"])
    begin, end = entry["data_offsets"] if rng.random() < 0.5 else (0, len(payload))
    return joined(header, payload[:begin] + rng.randbytes(end - begin) + payload[end:])


MUTATIONS = [flip, cut, splice, change_header, change_card, change_card, change_payload]


@pytest.fixture(scope="module")
def files() -> Iterator[tuple[list[bytes], Path]]:
    """Small packed files of every kind of form, and a place for a changed one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        whole = [path.read_bytes() for path in sorted((Path(__file__).parent / "assets").glob("packed-v*"))]
        for forms in FORMS:
            model = build_model("resnet8", classes=10, channels=1)
            save_model(compress_model(model, forms), path, card=CARD)
            whole.append(path.read_bytes())
        model = compress_model(build_model("resnet8", classes=10, channels=1), INT8)
        scale_activations(model, torch.rand(2, 1, 8, 8))
        save_model(model, path, card=CARD)
        whole.append(path.read_bytes())
        yield whole, path


def judge(path: Path) -> bool:
    """Whether the file loads as a network that runs; if not, it must be refused in one sentence."""
    try:
        model = load_model(path)
    except OvertoneError as error:
        text = str(error)
        assert text.startswith(
            (f"cannot read the packed model '{path}': ", f"cannot build the network of '{path}': ", f"'{path}' ")
        )
        assert not text.endswith(".")
        assert text.isprintable()
        assert len(text) < 800
        assert "Allocator" not in text
        return False
    card = read_card(path)
    with torch.no_grad():
        calls = "activations" in card and card["activations"]["calls"] != CALLS
        with pytest.raises(OvertoneError, match=r"^the network must make the same calls") if calls else nullcontext():
            assert model(torch.zeros(1, card["channels"], 32, 32)).shape == (1, card["classes"])
    return True


def memory(kind: str) -> int:
    """Bytes of this process, `VmHWM` (most ever) or `VmRSS` (now)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def fuzz(files: tuple[list[bytes], Path], examples: int) -> None:
    whole, path = files
    counts = {True: 0, False: 0}
    for data in whole:
        path.write_bytes(data)
        assert judge(path)

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=False
    )
    @given(st.sampled_from(MUTATIONS), st.sampled_from(whole), st.sampled_from(whole), st.integers(0, 2**64))
    def try_one(mutate: Callable[..., bytes], one: bytes, other: bytes, seed: int) -> None:
        path.write_bytes(mutate(one, other, random.Random(seed)))
        counts[judge(path)] += 1

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory("VmRSS")
    try_one()
    assert memory("VmHWM") - before < 300e6
    assert counts[True] > examples // 20
    assert counts[False] > examples // 3


def test_changed_files_are_refused_or_run(files):
    fuzz(files, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_changed_files_are_refused_or_run(files):
    fuzz(files, 10_000)


LIMITED = textwrap.dedent(
    """
    import resource, sys, torch, torchvision, warnings
    warnings.simplefilter("error")
    from pathlib import Path
    from layers import OvertoneError
    from spaces import load_model
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (resource.getpagesize() * pages + 200_000_000,) * 2)
    for path in sys.argv[1:]:
        try:
            load_model(path)
            print("loads")
        except OvertoneError as error:
            print(error)
    """
)


def load_in_little_memory(*paths: Path) -> list[str]:
    """What `load_model` says of each file where the process may take 200 MB more than it has."""
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def save_templates(path: Path, name: str) -> None:
    """A network whose every convolution is rebuilt from one template of two bits, all zero."""
    network = build_on_meta(name, classes=2, channels=3)
    convs = [key for key, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    convert_layers(
        network, dict.fromkeys(convs, LayerForm(templates=1, transform="scalar", bits=2, exponent_block=128))
    )
    materialize(network)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.zero_()
        for key in convs:
            network.get_submodule(key).template_mask[0] = True
    save_model(network, path, card={"model": name, "classes": 2, "channels": 3})


def test_a_small_file_cannot_ask_for_much_memory(files, tmp_path):
    data = files[0][-1]
    header, payload = parts(data)
    bare = {"forms": [], "activations": None, "channels": 3, "mean": [0] * 3, "std": [1] * 3}
    rebuilt = {"layers": ["layer3.0.conv2"], "templates": 1, "groups": 64, "transform": "scalar"}
    huge = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    cases = {
        **{name: change_to(data, {"model": name, **bare}) for name in ("regnet_y_128gf", "vit_h_14")},
        **{f"{count} classes": change_to(data, {"classes": count}) for count in (2**17, 2**18, 10**9)},
        "channels": change_to(data, {"channels": 2**17, "mean": [0] * 2**17, "std": [1] * 2**17}),
        "gains": change_to(data, {"forms": [rebuilt], "activations": None}),
        "shape": joined({**header, "packed": huge}, payload),
        "length": (90_000_000).to_bytes(8, "little") + data[8:],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    save_templates(tmp_path / "dense", "regnet_y_128gf")  # 2.6 GB of filters
    assert (tmp_path / "dense").stat().st_size < 10e6
    *refused, loaded = load_in_little_memory(*(tmp_path / name for name in cases), tmp_path / "dense")
    assert loaded == "loads"
    for said in refused:
        assert re.search(r"describes takes \d+ bytes|classes \(=1000000000\)|cannot read the packed model", said)
        assert "Allocator" not in said


def change_to(data: bytes, change: dict[str, Any]) -> bytes:
    """The file with these keys of its card changed."""
    header, payload = parts(data)
    text = json.dumps(json.loads(header["__metadata__"]["overtone"]) | change)
    return joined({**header, "__metadata__": {"overtone": text}}, payload)


def test_a_file_cannot_bring_its_own_code(files, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    for model in ("os:system", "spaces.models:build_model", ":", "a:b:c"):
        (tmp_path / "m").write_bytes(change_to(files[0][-1], {"model": model}))
        with pytest.raises(
            OvertoneError, match=rf"^'{tmp_path}/m' holds the network '{model}' of your own: pass it, or its factory"
        ):
            load_model(tmp_path / "m")


def test_metadata_without_a_card(tmp_path):
    tensors = pack_state(build_model("resnet8", classes=2, channels=1))
    for metadata in (None, {"format": "pt"}, {"overtone": ""}, {"Overtone": "{}"}):
        safetensors.torch.save_file(tensors, tmp_path / "m", metadata)
        with pytest.raises(OvertoneError, match=rf"^cannot read the packed model '{tmp_path}/m': [^\n]+$"):
            read_card(tmp_path / "m")

"""The packed format as docs/packed-format.md describes it: a NumPy reader that knows nothing else, and file sizes."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layers import LayerForm, compress_model, compressed_layers, pack_state
from layers.templates.transforms import TRANSFORMS
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model, load_model, read_card, save_model
from spaces.card import decode_forms

DOC = (Path(__file__).parents[2] / "docs" / "packed-format.md").read_text()
CARD = {"model": "resnet8", "classes": 10, "channels": 1}
Array = np.ndarray[Any, Any]


class Reader:
    """A packed file of one of the small ResNets."""

    def __init__(self, data: bytes) -> None:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        self.card = json.loads(header.pop("__metadata__")["overtone"])
        self.forms = {name: form for form in self.card["forms"] for name in form["layers"]}
        self.payload = data[start:]
        length = len(self.payload)
        assert header == {"packed": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}
        self.sizes = {name: size for layer in resnet_layers(self.card) for name, size in self.tensors(*layer)}

    def tensors(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int]]:
        """The tensors of a layer or norm and their bytes."""
        form = self.forms.get(name, {})
        if len(shape) == 1:
            for vector in ("weight", "bias", "running_mean", "running_var"):
                yield from self.stored(f"{name}.{vector}", shape, vector_form(form))
            return
        if name not in self.forms:
            yield f"{name}.weight", 4 * int(np.prod(shape))
        else:
            for part, stored in layer_tensors(form, shape).items():
                yield from self.stored(f"{name}.{part}", stored, form)
            if "templates" in form:
                yield f"{name}.template_mask", bytes_of(1, shape[0])
            if "assignment" in form:
                yield f"{name}.template_index", bytes_of(assigned_bits(form), shape[0] - form["templates"])
            if "allocation" in form:
                yield f"{name}.frequency_support", bytes_of(support_bits(shape), shape[0])
        if name == "linear":
            yield from self.stored("linear.bias", shape[:1], vector_form(form))

    def stored(self, name: str, shape: tuple[int, ...], form: dict[str, Any]) -> Iterator[tuple[str, int]]:
        if "bits" not in form:
            yield name, 4 * int(np.prod(shape))
        else:
            yield f"{name}.mantissas", bytes_of(1 + form["bits"], int(np.prod(shape)))
            count = 0 if 0 in shape else int(blocks(shape, form).max()) + 1
            yield f"{name}.exponents", bytes_of(form.get("exponent_bits", 7), count)

    def tensor(self, name: str) -> Array:
        """The bytes of a tensor."""
        assert sum(self.sizes.values()) == len(self.payload)
        begin = sum(size for other, size in self.sizes.items() if other < name)
        return np.frombuffer(self.payload[begin : begin + self.sizes[name]], np.uint8)

    def values(self, name: str, shape: tuple[int, ...], form: dict[str, Any]) -> Array:
        """A tensor of this shape, out of block floating point where the form has bits."""
        if "bits" not in form:
            return self.tensor(name).view("<f4").reshape(shape)
        if 0 in shape:
            return np.zeros(shape)
        bits, width = form["bits"], form.get("exponent_bits", 7)
        signed = numbers(self.tensor(f"{name}.mantissas"), 1 + bits, int(np.prod(shape)))
        block = blocks(shape, form)
        exponents = numbers(self.tensor(f"{name}.exponents"), width, block.max() + 1) - 2 ** (width - 1)
        magnitudes = np.where(signed >> bits, -1.0, 1.0) * (signed & (2**bits - 1))
        return magnitudes.reshape(shape) * 2.0 ** (exponents[block] - bits + 1)

    def filters(self, name: str) -> Array:
        """(N, C, K_y, K_x)."""
        form = self.forms[name]
        shape = dict(resnet_layers(self.card))[name]
        count, channels, k_y, k_x = shape
        stored = layer_tensors(form, shape)
        if "allocation" in form:
            rows = self.values(f"{name}.coefficients", stored["coefficients"], form)
            filters, row = np.zeros((count, channels, k_y, k_x)), 0
            for f, support in enumerate(numbers(self.tensor(f"{name}.frequency_support"), support_bits(shape), count)):
                for y in range(support // k_x + 1):
                    for x in range(support % k_x + 1):
                        filters[f, :, y, x] = rows[row]
                        row += 1
            return series(filters, form, k_y, k_x)
        coefficients = self.values(f"{name}.coefficients", stored["coefficients"], form)
        if "templates" not in form:
            return series(coefficients, form, k_y, k_x)
        m, g = form["templates"], form.get("groups", 1)
        templates = series(coefficients, form, k_y, k_x).reshape(g, m, channels // g, k_y, k_x)
        transforms = self.transforms(name, form, stored)
        kept = numbers(self.tensor(f"{name}.template_mask"), 1, count)
        rebuilt = count - m
        assigned = [r % m for r in range(rebuilt)]
        if "assignment" in form:
            assigned = numbers(self.tensor(f"{name}.template_index"), assigned_bits(form), rebuilt).tolist()
        filters, j, r = [], 0, 0
        for bit in kept:
            if bit:
                filters.append(np.concatenate([templates[i, j] for i in range(g)]))
                j += 1
            else:
                filters.append(np.concatenate([transforms(templates[i, assigned[r]], r, i) for i in range(g)]))
                r += 1
        return np.stack(filters)

    def transforms(self, name: str, form: dict[str, Any], stored: dict[str, tuple[int, ...]]) -> Any:
        """What makes of a template (C / G, K_y, K_x) the r-th rebuilt filter in group g."""
        if form["transform"] == "zero":
            return lambda template, r, g: 0 * template
        if form["transform"] == "scalar":
            gains = self.values(f"{name}.gains", stored["gains"], form)
            return lambda template, r, g: template * gains[r, g]
        if form["transform"] == "affine":
            matrices = self.values(f"{name}.matrices", stored["matrices"], form)
            return lambda template, r, g: resampled(template, matrices[r, g])
        angles = self.values(f"{name}.angles", stored["angles"], form)[..., 0]
        return lambda template, r, g: resampled(template, turn(angles[r, g]))


def turn(angle: float) -> Array:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])


def resampled(template: Array, matrix: Array) -> Array:
    """Tap by tap, from the four around the place that it is carried to."""
    (_, k_y, k_x), found = template.shape, np.zeros(template.shape)
    for y in range(k_y):
        for x in range(k_x):
            to_y, to_x = matrix @ [y - (k_y - 1) / 2, x - (k_x - 1) / 2, 1] + [(k_y - 1) / 2, (k_x - 1) / 2]
            for tap_y in range(k_y):
                for tap_x in range(k_x):
                    near = max(0, 1 - abs(to_y - tap_y)) * max(0, 1 - abs(to_x - tap_x))
                    found[:, y, x] += near * template[:, tap_y, tap_x]
    return found


def numbers(packed: Array, width: int, count: int) -> Array:
    bits = "".join(f"{byte:08b}" for byte in packed.tolist())
    return np.array([int(bits[i * width : (i + 1) * width], 2) for i in range(count)], dtype=np.int64)


def blocks(shape: tuple[int, ...], form: dict[str, Any]) -> Array:
    """Which exponent each value has."""
    size, axis = form.get("exponent_block", 1), form.get("exponent_axis", "flat")
    place = np.arange(np.prod(shape)).reshape(shape)
    if axis == "flat":
        return place // size
    first = place // np.prod(shape[1:])
    if axis == "filter":
        each = -(-int(np.prod(shape[1:])) // size)
        return first * each + place % int(np.prod(shape[1:])) // size
    inner = int(np.prod(shape[2:]))
    each = -(-shape[1] // size)
    return (first * each + place // inner % shape[1] // size) * inner + place % inner


def series(coefficients: Array, form: dict[str, Any], k_y: int, k_x: int) -> Array:
    if "basis" not in form:
        return coefficients
    phi_y, phi_x = (basis(form["basis"], taps, n) for taps, n in zip((k_y, k_x), coefficients.shape[-2:], strict=True))
    return phi_y @ coefficients @ phi_x.T


def basis(name: str, taps: int, harmonics: int) -> Array:
    family, _, points = name.partition("@")
    points = points or {"cosine": "half_sample", "chebyshev": "gauss_lobatto"}[family]
    k, last = np.arange(taps), max(taps - 1, 1)
    u = {"half_sample": (k + 0.5) / taps, "endpoint": k / last, "gauss_lobatto": (1 - np.cos(np.pi * k / last)) / 2}[
        points
    ]
    i = np.arange(harmonics)
    phi = np.cos(np.outer(np.pi * u if family == "cosine" else np.arccos(1 - 2 * u), i))
    return phi / np.linalg.norm(phi, axis=0)


def resnet_layers(card: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Convolutions and the linear layer (filters, channels, taps), and norms (channels,)."""
    found: list[tuple[str, tuple[int, ...]]] = [("conv1", (16, card["channels"], 3, 3)), ("bn1", (16,))]
    channels = 16
    for stage, filters in ((1, 16), (2, 32), (3, 64)):
        for block in range((int(card["model"].removeprefix("resnet")) - 2) // 6):
            for conv in (1, 2):
                found.append((f"layer{stage}.{block}.conv{conv}", (filters, channels, 3, 3)))
                found.append((f"layer{stage}.{block}.bn{conv}", (filters,)))
                channels = filters
    return [*found, ("linear", (card["classes"], 64, 1, 1))]


def layer_tensors(form: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Coefficients and transforms."""
    count, channels, k_y, k_x = shape
    n_y, n_x = form.get("harmonics", (k_y, k_x))
    if "allocation" in form:
        return {"coefficients": (count * n_y * n_x, channels)}
    if "templates" not in form:
        return {"coefficients": (count, channels, n_y, n_x)}
    m, g = form["templates"], form.get("groups", 1)
    transforms = {
        "scalar": {"gains": (count - m, g, k_y, k_x)},
        "rotation": {"angles": (count - m, g, 1)},
        "affine": {"matrices": (count - m, g, 2, 3)},
        "zero": {},
    }
    return {"coefficients": (g * m, channels // g, n_y, n_x), **transforms[form["transform"]]}


def vector_form(form: dict[str, Any]) -> dict[str, Any]:
    """Of a bias or a norm's vector: blocks of one value."""
    return {"bits": form["vector_bits"]} if "vector_bits" in form else {}


def support_bits(shape: tuple[int, ...]) -> int:
    return max(1, (shape[2] * shape[3] - 1).bit_length())


def assigned_bits(form: dict[str, Any]) -> int:
    return int(form["templates"] - 1).bit_length()


def bytes_of(width: int, count: int) -> int:
    return -(-width * count // 8)


AXES = ("flat", "filter", "channel") if "exponent_axis" in LayerForm.__dataclass_fields__ else ("flat",)


def random_form(rng: random.Random, name: str) -> LayerForm:
    knobs: dict[str, Any] = {}
    if rng.random() < 0.7:
        knobs |= {"bits": rng.randint(2, 16), "exponent_block": rng.choice([1, 2, 7, 16, 128]), "exponent_bits": 7}
        axis = rng.choice(AXES)
        knobs |= {} if axis == "flat" else {"exponent_axis": axis}
    if rng.random() < 0.3:
        knobs |= {"activation_bits": rng.randint(2, 16), "activation_block": rng.choice([1, 8])}
    if name == "linear":
        return LayerForm(**knobs)
    if rng.random() < 0.7:
        family, points = rng.choice(["cosine", "chebyshev"]), rng.choice(["half_sample", "endpoint", "gauss_lobatto"])
        knobs |= {"basis": f"{family}@{points}", "harmonics": (rng.randint(1, 3), rng.randint(1, 3))}
        if rng.random() < 0.4:
            return LayerForm(**knobs, allocation="filter")
    if rng.random() < 0.5:
        knobs |= {"templates": rng.randint(1, 16), "transform": rng.choice(TRANSFORMS)}
        knobs |= {} if name == "conv1" else {"groups": rng.choice([1, 2, 4])}
        if knobs["templates"] > 1 and knobs["transform"] != "zero" and rng.random() < 0.5:
            knobs |= {"assignment": "residual"}
    return LayerForm(**knobs)


def test_a_reader_of_the_document_gets_the_same_filters(fill, rng, tmp_path):
    path = tmp_path / "m.safetensors"
    for _ in range(6):
        dense = fill(build_model("resnet8", classes=10, channels=1))
        names = [name for name, layer in dense.named_modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
        forms = {name: random_form(rng, name) for name in names} | {"bn1": LayerForm(vector_bits=rng.randint(2, 16))}
        save_model(compress_model(dense, forms), path, card=CARD)
        reader, model = Reader(path.read_bytes()), load_model(path)
        assert reader.forms.keys() == set(forms)
        for vector in ("weight", "bias", "running_mean", "running_var"):
            found = reader.values(f"bn1.{vector}", (16,), vector_form(reader.forms["bn1"]))
            assert np.array_equal(found, model.state_dict()[f"bn1.{vector}"].numpy())
        for name, layer in compressed_layers(model).items():
            if name == "bn1":
                continue
            with torch.no_grad():
                expected = layer.filters().numpy()
            np.testing.assert_allclose(reader.filters(name).reshape(expected.shape), expected, rtol=2e-5, atol=2e-6)
        for name, value in model.state_dict().items():
            if name.rpartition(".")[0] not in reader.forms and not name.endswith("num_batches_tracked"):
                assert np.array_equal(reader.values(name, tuple(value.shape), {}), value.numpy())


def test_a_file_is_its_header_and_size_bytes(fill, draw, tmp_path):
    dense, path = fill(build_model("resnet8", classes=10, channels=1)), tmp_path / "m.safetensors"
    space = Space.default(Network.from_module(dense, (1, 8, 8)))
    for _ in range(8):
        config = space.decode(draw(space))
        save_model(compress_model(dense, space.network.forms(config)), path, card=CARD)
        data = path.read_bytes()
        header = int.from_bytes(data[:8], "little")
        assert len(data) == 8 + header + space.network.cost(config).size_bytes
        assert header % 8 == 0
        card = json.loads(data[8 : 8 + header])["__metadata__"]["overtone"]
        assert header < 120 + 1.3 * len(card)


IMAGES = {"resnet8": (1, 8, 8), "resnet20": (3, 32, 32), "resnet50": (3, 224, 224)}
ROWS = re.findall(r"^\| (resnet\d+) \| (.*) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOC, re.MULTILINE)


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row[0]}-{row[2]}") for row in ROWS])
def test_the_headers_of_the_document_are_those_of_files(row, tmp_path):
    name, said, *counts = row
    image, classes = IMAGES[name], 1000 if name == "resnet50" else 10
    model = build_model(name, classes=classes, channels=image[0]).eval()
    network = Network.from_module(model, image)
    series = {"basis": "cosine", "harmonics": (2, 2), "bits": 8, "exponent_block": 8}
    pruned = {"pruning_rate": 0.5, "groups": 2} if "templates" in said else {}
    blocks = {
        block: BlockConfig(**series, **{k: v for k, v in pruned.items() if k != "groups" or block != "conv1"})
        for block in network.blocks
    }
    config = NetworkConfig(blocks=blocks)
    card = {"model": name, "classes": classes, "channels": image[0], "image_size": list(image[1:])}
    card |= {"mean": [0.5] * image[0], "std": [0.25] * image[0], "config": config.to_json()}
    save_model(compress_model(model, network.forms(config)), tmp_path / "m", card=card)
    data = (tmp_path / "m").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    card_bytes = len(json.dumps(header.pop("__metadata__"), separators=(",", ":")))
    assert header.keys() == {"packed"}
    found = [card_bytes, len(data), network.cost(config).size_bytes]
    assert found == [int(count.replace(",", "")) for count in counts]


def test_layers_of_one_form_share_its_entry(dense_forms, tmp_path):
    dense, forms = dense_forms
    save_model(compress_model(dense, forms), tmp_path / "m", card=CARD)
    listed = Reader((tmp_path / "m").read_bytes()).card["forms"]
    assert listed == [
        {"layers": ["layer1.0.conv1", "layer1.0.conv2"], "basis": "cosine", "harmonics": [2, 2], "bits": 8},
        {"layers": ["linear"], "bits": 8},
    ]
    assert read_card(tmp_path / "m")["forms"]["layer1.0.conv2"] == {"basis": "cosine", "harmonics": [2, 2], "bits": 8}


@pytest.fixture
def dense_forms(fill):
    form = LayerForm(basis="cosine", harmonics=(2, 2), bits=8)
    forms = {"layer1.0.conv1": form, "layer1.0.conv2": form, "linear": LayerForm(bits=8)}
    return fill(build_model("resnet8", classes=10, channels=1)), forms


def test_the_examples_bytes_are_those_of_the_packer():
    rows = re.findall(r"^\| (\w+) \| ([\d ]+) \| (\d+) \| ([0-9A-F ]+) \|$", DOC, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "mantissas",
        "exponents",
        "template_mask",
        "template_index",
        "frequency_support",
    ]
    for _, listed, width, packed in rows:
        data = np.frombuffer(bytes.fromhex(packed), np.uint8)
        assert numbers(data, int(width), len(listed.split())).tolist() == [int(number) for number in listed.split()]
        assert data.size == -(-len(listed.split()) * int(width) // 8)
    linear = torch.nn.Linear(5, 1, bias=False)
    weights = [float(number) for number in re.search(r"five weights (.*) in the form", DOC)[1].split(", ")]
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([weights]))
    form = json.loads(re.search(r"in the form `(.*?)`", DOC)[1])
    state = pack_state(compress_model(torch.nn.Sequential(linear), {"0": LayerForm(**form)}))
    for name, _, _, packed in rows[:2]:
        assert bytes(state[f"0.coefficients.{name}"].numpy()) == bytes.fromhex(packed)


def test_the_document_has_every_knob():
    keys = re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE)
    assert set(LayerForm.__dataclass_fields__) <= set(keys)


def test_the_file_of_format_2_is_read(tmp_path):
    """Written once, with the logits that it gave then."""
    path = Path(__file__).parent / "assets" / "packed-v2.safetensors"
    card, model = read_card(path), load_model(path)
    assert card["format"] == 2
    assert {name: layer.form for name, layer in compressed_layers(model).items()} == decode_forms(card)
    with torch.no_grad():
        logits = model(torch.arange(64.0).view(1, 1, 8, 8) / 64)
    torch.testing.assert_close(logits[0], torch.tensor(card["logits"]), rtol=1e-3, atol=1e-3)
    save_model(model, tmp_path / "m", card=card)
    assert read_card(tmp_path / "m") == card
    assert (tmp_path / "m").read_bytes() == path.read_bytes()

import json
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from layers import LayerForm, OvertoneError, UsageError, compress_model, compressed_layers, join_state, pack_state
from spaces import Network, Space, build_model, load_model, read_card, save_model
from spaces.packed import PACKED_FORMAT

CARD = {"model": "resnet8", "classes": 10, "channels": 1, "image_size": 8, "mean": [0.5], "study": {"a": [1, None]}}
FORMS = {
    "layer1.0.conv1": LayerForm(basis="chebyshev", harmonics=(2, 2), allocation="filter", bits=7),
    "conv1": LayerForm(basis="cosine", harmonics=(2, 3), bits=6),
    "layer3.0.conv2": LayerForm(templates=9, groups=2, transform="scalar", bits=8, exponent_block=16),
    "linear": LayerForm(bits=4, exponent_block=7, activation_bits=5, activation_block=3, vector_bits=6),
    "layer2.0.bn1": LayerForm(vector_bits=8),
    "layer2.0.conv2": LayerForm(templates=9, groups=2, transform="affine", bits=8),
}


@pytest.fixture
def dense(fill):
    return fill(build_model("resnet8", classes=10, channels=1))


@pytest.fixture
def path(dense, tmp_path):
    save_model(compress_model(dense, FORMS), tmp_path / "m.safetensors", card=CARD)
    return tmp_path / "m.safetensors"


def test_loaded_networks_give_bit_equal_logits(dense, draw, images, tmp_path):
    space = Space.default(Network.from_module(dense, (1, 8, 8)))
    x, path = images(8, 1, 8, 8), tmp_path / "m.safetensors"
    for _ in range(12):
        config = space.decode(draw(space))
        model = compress_model(dense, space.network.forms(config)).eval()
        save_model(model, path, card=CARD)
        loaded = load_model(path)
        assert not loaded.training
        assert torch.equal(loaded(x), model(x))
        (packed,) = safetensors.torch.load_file(path).values()
        assert packed.nbytes == space.network.cost(config).size_bytes
        assert {name: layer.form for name, layer in compressed_layers(loaded).items()} == space.network.forms(config)


def test_the_card_is_kept(path):
    card = read_card(path)
    assert card.items() >= CARD.items()
    assert card["format"] == PACKED_FORMAT == 2
    assert set(card["forms"]) == set(FORMS)


@pytest.mark.parametrize(("codes", "message"), [(15, r"support \(=15\) must be below 9"), (0, r"make 16 coefficients")])
def test_supports_that_cannot_be_are_refused(codes, message, path):
    name = "layer1.0.conv1.frequency_support"
    rewrite(path, change_tensors=lambda tensors: tensors | {name: torch.full_like(tensors[name], 17 * codes)})
    with pytest.raises(OvertoneError, match=message):
        load_model(path)


def test_training_goes_on_from_a_loaded_network(path, images):
    model = load_model(path).train()
    model(images(4, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_networks_of_a_users_factory_need_that_factory(wide, fill, images, tmp_path):
    model, path = compress_model(fill(wide), {"stem": LayerForm(basis="chebyshev", harmonics=(3, 2))}).eval(), tmp_path
    name = f"trap_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        save_model(model, path / "m", card={"model": f"{name}:make", "classes": 5, "channels": 3})
        with pytest.raises(
            UsageError,
            match=rf"m' holds the network '{name}:make' of your own: pass it, or its factory, as model$",
        ):
            load_model(path / "m")
        loaded = load_model(path / "m", model=type(wide))
    finally:
        sys.path.remove(str(tmp_path))
    assert name not in sys.modules
    x = images(2, 3, 12, 12)
    assert torch.equal(loaded(x), model(x))


OWN_FORMS = {
    "stem": LayerForm(basis="chebyshev", harmonics=(3, 2), bits=6),
    "body2": LayerForm(templates=4, groups=2, transform="affine", bits=8, exponent_block=16),
    "body.3": LayerForm(bits=5, vector_bits=7),
    "head": LayerForm(bits=4, exponent_block=3),
}


@pytest.fixture
def own(wide, fill, tmp_path):
    """A compressed network of a user's module, and the file that holds it."""
    model = compress_model(fill(wide), OWN_FORMS).eval()
    save_model(model, tmp_path / "own", card={"model": "object:WideNet", "classes": 5, "channels": 3})
    return model, tmp_path / "own"


@pytest.mark.parametrize("given", ["module", "trained module", "class", "factory"])
def test_networks_of_a_users_module_load_with_it_bit_by_bit(own, wide, fill, images, given):
    (model, path), x = own, images(4, 3, 12, 12)
    module = fill(type(wide)()).train() if given == "module" else wide
    module.body.eval()
    modes = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    makers = {"class": type(wide), "factory": lambda *, classes, channels: module}
    loaded = load_model(path, model=makers.get(given, module))
    assert torch.equal(loaded(x), model(x))
    assert not any(part.training for part in loaded.modules())
    assert {name: layer.form for name, layer in compressed_layers(loaded).items()} == OWN_FORMS
    loaded.train()(x).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), 1.0).step()
    if given != "factory":
        assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_networks_of_a_users_module_need_that_module(own):
    with pytest.raises(
        UsageError, match=r"own' holds the network 'object:WideNet' of your own: pass it, or its factory, as model$"
    ):
        load_model(own[1])
    assert read_card(own[1])["model"] == "object:WideNet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wide: type(wide)(classes=6), r"the packed model must be \d+ bytes, not "),
        (lambda wide: type(wide)(channels=2), r"the packed model must be \d+ bytes, not "),
        (lambda wide: setattr(wide, "head", nn.Identity()) or wide, r"layer \(=Identity\) must be a Conv2d"),
        (lambda wide: setattr(wide, "body2", nn.Linear(32, 12)) or wide, r""),
        (lambda wide: setattr(wide, "more", nn.Linear(2, 2)) or wide, r"the packed model must be \d+ bytes, not "),
        (lambda wide: delattr(wide, "stem") or wide, r"layer \(='stem'\) must be one of the model's layers"),
        (lambda wide: nn.Linear(3, 5), r"layer \(='.*'\) must be one of the model's layers"),
        (lambda wide: nn.Sequential(), r"layer \(='.*'\) must be one of the model's layers"),
        (lambda wide: "resnet8", r"'str' object is not callable"),
        (lambda wide: lambda **shape: None, r"'NoneType' object has no attribute"),
    ],
)
def test_a_module_of_another_architecture_is_one_sentence(own, wide, change, message):
    with pytest.raises(OvertoneError, match=rf"^cannot build the network of '.*own': {message}[^\n]*$"):
        load_model(own[1], model=change(wide))


def test_a_module_that_cannot_be_copied_is_the_callers_fault(own, wide):
    with pytest.raises(
        UsageError, match=r"^model \(='object:WideNet'\) must have float32 weights: 'stem.weight' is fl"
    ):
        load_model(own[1], model=wide.double())


def test_wrong_factory_is_one_sentence(path):
    with pytest.raises(OvertoneError, match=r"^[^\n]+$"):
        load_model(path, model=lambda *, classes, channels: nn.Linear(classes, channels))
    with pytest.raises(OvertoneError, match=r"^cannot build the network of [^\n]+$"):
        load_model(path, model=lambda: None)


def rewrite(path, change_card=lambda card: card, change_tensors=lambda tensors: tensors):
    """The file with another card, or with other tensors in its payload."""
    with safetensors.safe_open(path, framework="pt") as file:
        text = change_card(json.loads(file.metadata()["overtone"]))
    metadata = {"overtone": text if isinstance(text, str) else json.dumps(text)}
    packed = join_state(change_tensors(pack_state(load_model(path))))
    safetensors.torch.save_file({"packed": packed}, path, metadata)


def without(key):
    return lambda card: {k: v for k, v in card.items() if k != key}


def form(layer="linear", **changes):
    """The form of one layer changed."""
    return lambda card: (
        card | {"forms": [form | changes if form["layers"] == [layer] else form for form in card["forms"]]}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: "{", r"Expecting property name"),
        (lambda card: "[" * 100_000, r"recursion"),
        (lambda card: [card], r"its card is not a JSON object$"),
        *((without(key), rf"its card lacks '{key}'$") for key in ("model", "classes", "channels", "forms", "format")),
        (lambda card: {"format": 3, "network": 1}, r"format \(=3\) must be 2, which is all that this Overtone reads$"),
        (
            lambda card: card | {"format": 1},
            r"format \(=1\) must be 2: before it, bits rounded the layers' inputs too$",
        ),
        *((lambda card, v=v: card | {"format": v}, r"format \(=") for v in (None, 0, True, 1.0, "1", [1])),
        *(
            (lambda card, v=v: without("format")(card) | {"version": v}, r"it is from a pre-release of Overtone$")
            for v in (1, 4, None)
        ),
        (lambda card: card | {"forms": [{"bits": 8}]}, r"each of the forms must name its layers$"),
        (lambda card: card | {"forms": [{"layers": ["linear", "linear"]}]}, r"it says 'linear' twice$"),
        *((lambda card, v=v: card | {"model": v}, r"model must be a name") for v in (5, ["resnet8"], "x" * 256)),
        *((lambda card, v=v: card | {"classes": v}, r"classes \(=") for v in ("ten", -1, 0, 10.0, True, 10**9, 10**30)),
        *((lambda card, v=v: card | {"channels": v}, r"channels \(=") for v in (None, 10**9, [3])),
        *((lambda card, v=v: card | {"image_size": v}, r"image_size \(=") for v in (0, [8], [8, 8, 8], "8", 1 << 20)),
        *(
            (lambda card, v=v: card | {"mean": v}, r"mean must be a number for each")
            for v in (0.5, [], ["a"], [0.5] * 2)
        ),
        *(
            (lambda card, v=v: card | {"forms": v}, r"forms must be a list of objects$")
            for v in (3, {}, None, "linear", {"linear": {"bits": 8}}, [3])
        ),
        (form(surprise=1), r"the form of 'linear' must be an object with keys among basis, "),
        *(
            (form(bits=v), r"bits \(=.*\) of 'linear' must be a JSON value of int$")
            for v in ("8", None, True, 8.0, [8])
        ),
        *((form(harmonics=v), r"harmonics \(=.*\) of 'linear' must be a JSON value of list$") for v in (3, "22")),
        (lambda card: json.dumps(card)[:-1] + ', "model": "resnet20"}', r"it says 'model' twice$"),
        (lambda card: json.dumps(card | {"note": float("nan")}), r"it holds the number NaN, which is not finite$"),
        (
            lambda card: json.dumps(card)[:-1] + ', "note": -1e999}',
            r"it holds the number -1e999, which is not finite$",
        ),
        (lambda card: json.dumps(card)[:-1] + f', "note": {"9" * 5000}}}', r"Exceeds the limit \(4300 digits\)"),
    ],
)
def test_cards_that_cannot_be_read(change, message, path):
    rewrite(path, change)
    for call in (read_card, load_model):
        with pytest.raises(OvertoneError, match=rf"^cannot read the packed model '{path}': [^\n]*{message}"):
            call(path)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda card, v=v: card | {"model": v}
            for v in ("resnet9", "resnet20", "regnet_y_128gf", "", "resnet8 ", "a.b")
        ),
        lambda card: card | {"classes": 11},
        lambda card: card | {"channels": 3, "mean": [0.5] * 3},
        lambda card: card | {"forms": []},
        *(
            lambda card, name=name: card | {"forms": [*card["forms"], {"layers": [name], "bits": 4}]}
            for name in ("layer9", "layer1", "bn1")
        ),
        form(bits=99),
        form(bits=10**30),
        form(exponent_bits=8),
        form(harmonics=[2, -2], basis="cosine"),
        form(harmonics=[2, 2.0], basis="cosine"),
        form(harmonics=[], basis="cosine"),
        form(harmonics=[1, 1], basis="sine"),
        form(harmonics=[2, 2, 2], basis="cosine"),
        form(templates=4, transform="scalar"),
        form(groups=0),
        *(
            form("layer3.0.conv2", **change)
            for change in ({"groups": 0}, {"groups": 3}, {"groups": 10**20}, {"templates": -4}, {"templates": 65})
        ),
    ],
)
def test_cards_that_describe_another_network(change, path):
    rewrite(path, change)
    assert read_card(path)["format"] == PACKED_FORMAT
    with pytest.raises(OvertoneError, match=rf"^cannot build the network of '{path}': [^\n]+$"):
        load_model(path)


def test_tensors_that_are_not_those_of_the_network(path):
    whole = path.read_bytes()
    for change, message in (
        (lambda t: {k: v for k, v in t.items() if k != "bn1.weight"}, r"takes \d+ bytes, its payload has \d+$"),
        (lambda t: t | {"bn1.weight": torch.zeros(3)}, r"takes \d+ bytes, its payload has \d+$"),
        (
            lambda t: t | {"layer3.0.conv2.template_mask": torch.zeros(8, dtype=torch.uint8)},
            r"conv2' keeps 0 filters, not 9$",
        ),
    ):
        path.write_bytes(whole)
        rewrite(path, change_tensors=change)
        with pytest.raises(OvertoneError, match=rf"^cannot build the network of '{path}': [^\n]*{message}"):
            load_model(path)


def test_payloads_that_are_not_that_of_the_network(path):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, packed = file.metadata(), file.get_tensor("packed")
    shape = rf"must be {len(packed)} bytes, not"
    for tensors, message in (
        ({"packed": packed[1:]}, r"build .* takes \d+ bytes, its payload has \d+$"),
        ({"packed": packed.view(1, -1)}, rf"build .* {shape} torch.uint8 \(1, {len(packed)}\)$"),
        ({"packed": packed.view(torch.int8)}, rf"build .* {shape} torch.int8 \({len(packed)},\)$"),
        ({"stray": packed}, r"read .* its tensors are 'stray', and not 'packed' alone$"),
        ({}, r"read .* its tensors are none, and not 'packed' alone$"),
        (
            {"packed": packed[1:], "stray": packed[:1]},
            r"read .* its tensors are 'packed', 'stray', and not 'packed' alone$",
        ),
    ):
        safetensors.torch.save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
        with pytest.raises(OvertoneError, match=rf"^cannot {message}"):
            load_model(path)
    safetensors.torch.save_file({"packed": packed[1:].clone()}, path, metadata)
    with pytest.raises(OvertoneError, match=rf"{shape} torch.uint8 \({len(packed) - 1},\)$"):
        load_model(path, model=lambda *, classes, channels: build_model("resnet8", classes=10, channels=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, "deep"])
def test_cards_that_are_not_json_are_not_written(value, dense, tmp_path):
    if value == "deep":
        for _ in range(100_000):
            value = [value]
    with pytest.raises(UsageError, match=r"^the card of a packed model must be plain JSON: [^\n]+$"):
        save_model(compress_model(dense, FORMS), tmp_path / "m", card=CARD | {"note": value})
    assert not list(tmp_path.iterdir())


def test_indices_that_the_network_computes_must_be_its_own(tmp_path):
    forms, card = {"head": LayerForm(bits=4)}, {"model": "swin_t", "classes": 2, "channels": 3}
    save_model(compress_model(build_model("swin_t", classes=2, channels=3), forms), tmp_path / "m", card=card)
    model = load_model(tmp_path / "m")
    assert not any(value.is_meta for value in model.state_dict().values())
    name = "features.1.0.attn.relative_position_index"
    model.get_buffer(name).add_(10**6)
    save_model(model, tmp_path / "m", card=card)
    with pytest.raises(OvertoneError, match=r"relative_position_index' is not that of the network$"):
        load_model(tmp_path / "m")


def test_damaged_and_foreign_files_are_refused_in_one_sentence(path, dense, tmp_path, rng):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    broken = [b"", b"{}", b"hello\n" * 50, rng.randbytes(500), whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]]
    broken += [whole[: rng.randrange(len(whole))] for _ in range(10)] + [whole[:header], whole[:7]]
    broken += [whole[:20] + rng.randbytes(20) + whole[40:]]
    for content in broken:
        path.write_bytes(content)
        for call in (read_card, load_model):
            with pytest.raises(OvertoneError, match=rf"^cannot read the packed model '{path}': [^\n]+$"):
                call(path)
    safetensors.torch.save_file(pack_state(dense), path)
    foreign = [path, tmp_path, tmp_path / "gone"]
    torch.save(dense.state_dict(), tmp_path / "state.pt")
    for name in [*foreign, tmp_path / "state.pt"]:
        with pytest.raises(OvertoneError, match=rf"^cannot read the packed model '{name}': [^\n]+$"):
            load_model(name)


def fail(*args):
    raise OSError("no room")


def test_failed_write_leaves_what_was_there(path, dense, tmp_path, monkeypatch):
    before = path.read_bytes()
    broken = compress_model(dense, FORMS)
    with torch.no_grad():
        broken.conv1.coefficients[0, 0, 0, 0] = torch.nan
    with pytest.raises(OvertoneError, match=r"'conv1.coefficients'"):
        save_model(broken, path, card=CARD)
    assert path.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OvertoneError, match=rf"^cannot write the packed model '{path}': no room$"):
            save_model(dense, path, card=CARD)
    assert path.read_bytes() == before
    for target in (path / "m", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OvertoneError, match=rf"^cannot write the packed model '{target}': [^\n]+$"):
            save_model(dense, target, card=CARD)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "m.safetensors"]

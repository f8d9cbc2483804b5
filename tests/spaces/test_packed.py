import json
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from layers import LayerForm, OvertoneError, UsageError, compress_model, compressed_layers, pack_state
from spaces import Network, Space, build_model, load_model, read_card, save_model
from spaces.packed import PACKED_VERSION

CARD = {"model": "resnet8", "classes": 10, "channels": 1, "image_size": 8, "mean": [0.5], "study": {"a": [1, None]}}
FORMS = {
    "layer1.0.conv1": LayerForm(basis="chebyshev", harmonics=(2, 2), allocation="filter", bits=7),
    "conv1": LayerForm(basis="cosine", harmonics=(2, 3), bits=6),
    "layer3.0.conv2": LayerForm(templates=9, groups=2, transform="scalar", bits=8, exponent_block=16),
    "linear": LayerForm(bits=4, exponent_block=7),
}


@pytest.fixture
def dense(fill):
    return fill(build_model("resnet8", classes=10, channels=1))


@pytest.fixture
def path(dense, tmp_path):
    save_model(compress_model(dense, FORMS), tmp_path / "m.safetensors", card=CARD)
    return tmp_path / "m.safetensors"


def test_loaded_networks_give_bit_equal_logits(dense, draw, images, tmp_path):
    space = Space.default(Network.of(dense, (1, 8, 8)))
    x, path = images(8, 1, 8, 8), tmp_path / "m.safetensors"
    for _ in range(12):
        config = space.decode(draw(space))
        model = compress_model(dense, space.network.forms(config)).eval()
        save_model(model, path, card=CARD)
        loaded = load_model(path)
        assert not loaded.training
        assert torch.equal(loaded(x), model(x))
        tensors = safetensors.torch.load_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) == space.network.cost(config).size_bytes
        assert {name: layer.form for name, layer in compressed_layers(loaded).items()} == space.network.forms(config)


def test_the_card_is_kept(path):
    card = read_card(path)
    assert card.items() >= CARD.items()
    assert card["version"] == PACKED_VERSION
    assert set(card["forms"]) == set(FORMS)


@pytest.mark.parametrize(("codes", "message"), [(15, r"support \(=15\) must be below 9"), (0, r"make 16 coefficients")])
def test_supports_that_cannot_be_are_refused(codes, message, path):
    tensors = safetensors.torch.load_file(path)
    tensors["layer1.0.conv1.supports"] = torch.full_like(tensors["layer1.0.conv1.supports"], 17 * codes)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata)
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
        with pytest.raises(UsageError, match=rf"holds the network '{name}:make': pass its factory to load_model\."):
            load_model(path / "m")
        loaded = load_model(path / "m", factory=type(wide))
    finally:
        sys.path.remove(str(tmp_path))
    assert name not in sys.modules
    x = images(2, 3, 12, 12)
    assert torch.equal(loaded(x), model(x))


def test_wrong_factory_is_one_sentence(path):
    with pytest.raises(OvertoneError, match=r"^[^\n]+$"):
        load_model(path, factory=lambda *, classes, channels: nn.Linear(classes, channels))
    with pytest.raises(OvertoneError, match=r"does not describe a network: [^\n]+$"):
        load_model(path, factory=lambda: None)


def rewrite(path, change_card=lambda card: card, change_tensors=lambda tensors: tensors):
    with safetensors.safe_open(str(path), "pt") as file:
        card = json.loads(file.metadata()["overtone"])
    tensors = safetensors.torch.load_file(path)
    text = change_card(card)
    metadata = {"overtone": text if isinstance(text, str) else json.dumps(text)}
    safetensors.torch.save_file(change_tensors(tensors), path, metadata)


def without(key):
    return lambda card: {k: v for k, v in card.items() if k != key}


def form(**changes):
    return lambda card: card | {"forms": card["forms"] | {"linear": card["forms"]["linear"] | changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: "{", r"is not a packed model of Overtone: "),
        (lambda card: "[" * 100_000, r"is not a packed model of Overtone: "),
        (lambda card: [card], r"is not a packed model of Overtone: its card lacks one of "),
        *((without(key), r"its card lacks one of ") for key in ("model", "classes", "channels", "forms", "version")),
        (lambda card: card | {"version": 2}, rf"has version 2, this Overtone reads {PACKED_VERSION}\."),
        (lambda card: {"version": 3, "network": 1}, rf"has version 3, this Overtone reads {PACKED_VERSION}\."),
        (lambda card: card | {"version": None}, rf"has version None, this Overtone reads {PACKED_VERSION}\."),
    ],
)
def test_cards_that_cannot_be_read(change, message, path):
    rewrite(path, change)
    for call in (read_card, load_model):
        with pytest.raises(OvertoneError, match=rf"^{path} [^\n]*{message}[^\n]*$"):
            call(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card | {"model": "resnet9"},
        lambda card: card | {"model": 5},
        lambda card: card | {"model": ["resnet8"]},
        lambda card: card | {"model": "os.path:join"},
        lambda card: card | {"model": "resnet20"},
        lambda card: card | {"classes": "ten"},
        lambda card: card | {"classes": 11},
        lambda card: card | {"classes": -1},
        lambda card: card | {"channels": None},
        lambda card: card | {"channels": 3},
        lambda card: card | {"forms": 3},
        lambda card: card | {"forms": {"linear": 3}},
        lambda card: card | {"forms": {}},
        lambda card: card | {"forms": card["forms"] | {"layer9": card["forms"]["linear"]}},
        lambda card: card | {"forms": card["forms"] | {"": card["forms"]["linear"]}},
        lambda card: card | {"forms": card["forms"] | {"layer1": card["forms"]["linear"]}},
        form(bits=99),
        form(bits="8"),
        form(bits=None),
        form(harmonics=3),
        form(harmonics=[2, 2, 2], basis="cosine"),
        form(templates=4, transform="scalar"),
        form(groups=0),
        form(surprise=1),
        lambda card: (
            card | {"forms": card["forms"] | {"layer3.0.conv2": card["forms"]["layer3.0.conv2"] | {"groups": 0}}}
        ),
        lambda card: (
            card | {"forms": card["forms"] | {"layer3.0.conv2": card["forms"]["layer3.0.conv2"] | {"templates": 2.5}}}
        ),
        lambda card: (
            card | {"forms": card["forms"] | {"layer3.0.conv2": card["forms"]["layer3.0.conv2"] | {"templates": -4}}}
        ),
    ],
)
def test_cards_that_describe_another_network(change, path):
    rewrite(path, change)
    assert read_card(path)["version"] == PACKED_VERSION
    with pytest.raises(OvertoneError, match=r"^[^\n]+$"):
        load_model(path)


def test_tensors_that_are_not_those_of_the_network(path):
    for change, message in (
        (lambda t: {k: v for k, v in t.items() if k != "bn1.weight"}, r"lacks the tensor 'bn1.weight'\."),
        (lambda t: t | {"bn1.weight": torch.zeros(16), "stray": torch.zeros(2)}, r"the network has not: 'stray'\."),
        (lambda t: {k: v for k, v in t.items() if k != "stray"} | {"bn1.weight": torch.zeros(3)}, r"'bn1.weight' is"),
        (lambda t: t | {"bn1.weight": torch.zeros(16, dtype=torch.int64)}, r"'bn1.weight' is torch.int64"),
    ):
        rewrite(path, change_tensors=change)
        with pytest.raises(OvertoneError, match=message):
            load_model(path)


def test_damaged_and_foreign_files_are_refused_in_one_sentence(path, dense, tmp_path, rng):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    broken = [b"", b"{}", b"hello\n" * 50, rng.randbytes(500), whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]]
    broken += [whole[: rng.randrange(len(whole))] for _ in range(10)] + [whole[:header], whole[:7]]
    broken += [whole[:20] + rng.randbytes(20) + whole[40:]]
    for content in broken:
        path.write_bytes(content)
        for call in (read_card, load_model):
            with pytest.raises(OvertoneError, match=rf"^{path} is not a packed model of Overtone: [^\n]*$"):
                call(path)
    safetensors.torch.save_file(pack_state(dense), path)
    foreign = [path, tmp_path, tmp_path / "gone"]
    torch.save(dense.state_dict(), tmp_path / "state.pt")
    for name in [*foreign, tmp_path / "state.pt"]:
        with pytest.raises(OvertoneError, match=rf"^{name} is not a packed model of Overtone: [^\n]*$"):
            load_model(name)


def fail(*args):
    raise OSError("no room")


def test_failed_write_leaves_what_was_there(path, dense, tmp_path, monkeypatch):
    before = path.read_bytes()
    broken = compress_model(dense, FORMS)
    with torch.no_grad():
        broken.conv1.coefficients[0, 0, 0, 0] = torch.nan
    with pytest.raises(OvertoneError, match=r"The tensor 'conv1.coefficients' cannot be packed"):
        save_model(broken, path, card=CARD)
    assert path.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OvertoneError, match=rf"^The packed model cannot be written to {path}: no room\.$"):
            save_model(dense, path, card=CARD)
    assert path.read_bytes() == before
    for target in (tmp_path / "no" / "folder" / "m", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OvertoneError, match=rf"^The packed model cannot be written to {target}: [^\n]*$"):
            save_model(dense, target, card=CARD)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "m.safetensors"]

import sys
import threading

import pytest
import torch
import torchvision
from torch import nn

from layers import UsageError
from spaces import build_model, load_weights
from spaces.models import check_outputs, copy_module, describe_module, is_factory, is_object


@pytest.fixture
def factories(tmp_path, monkeypatch):
    name = f"factories_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "word = 'nothing to call'\n"
        "def make(classes, channels):\n    return nn.Conv2d(channels, classes, 3)\n"
        "def odd(classes, channels):\n    return 'a string'\n"
        "def narrow(classes):\n    return nn.Identity()\n"
        "def lazy(classes, channels):\n    return nn.Sequential(nn.LazyConv2d(classes, 3))\n"
        "def broken(classes, channels):\n    raise KeyError('boom')\n"
        "def tied(classes, channels):\n"
        "    net = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.Conv2d(5, 5, 3), nn.Conv2d(5, 5, 3))\n"
        "    net[2].weight = net[1].weight\n    return net\n"
        "def twice(classes, channels):\n"
        "    layer = nn.Conv2d(channels, classes, 3)\n    return nn.ModuleDict({'a': layer, 'b': layer})\n"
        "def spectral(classes, channels):\n"
        "    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(channels, classes, 3)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "vgg16"])
def test_zoo_by_name(name, images):
    model = build_model(name, classes=6, channels=1).eval()
    assert model(images(2, 1, 32, 32)).shape == (2, 6)


def test_torchvision_by_name(images):
    model = build_model("mobilenet_v2", classes=6, channels=3).eval()
    assert model(images(1, 3, 32, 32)).shape == (1, 6)


def test_factory_by_name(factories):
    assert is_factory(f"{factories}:make")
    assert not is_factory("resnet8")
    model = build_model(f"{factories}:make", classes=4, channels=2)
    assert isinstance(model, nn.Conv2d)
    assert (model.in_channels, model.out_channels) == (2, 4)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("gone", r"must be importable as package.module:factory: .*no attribute 'gone'$"),
        ("odd", r"must return a torch.nn.Module, not str$"),
        ("narrow", r"must take classes=... and channels=...: .*'channels'$"),
        ("tied", r"must hold each weight once: '1.weight' is '2.weight' too$"),
        ("twice", r"must hold each weight once: 'a.weight' is 'b.weight' too$"),
        ("lazy", r"must be given an image in its factory: its layer '0' is lazy$"),
        ("spectral", r"must have plain weights: those of its layer '0' are computed by a hook"),
        ("word", r"must take classes=... and channels=...: .*not a callable object$"),
    ],
)
def test_factories_that_make_no_network_are_refused(attribute, message, factories):
    with pytest.raises(UsageError, match=rf"model \(='{factories}:{attribute}'\) {message}"):
        build_model(f"{factories}:{attribute}", classes=4, channels=2)


TALKATIVE = """
import argparse, sys
import torch
from torch import nn
print("imported")
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=7)
WIDTH = parser.parse_args().width

def net(channels, *more):
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3), *more)

def talks(classes, channels):
    print("built", sys.argv[1:])
    return net(channels)

def wants(classes, channels):
    parser.add_argument("data")
    parser.parse_args()

def leaves(classes, channels):
    sys.exit()

def scripted(classes, channels):
    return net(channels, torch.jit.script(nn.Conv2d(WIDTH, classes, 3)))

def whole(classes, channels):
    return torch.jit.trace(net(channels), torch.zeros(1, channels, 8, 8))

def volumes(classes, channels):
    return net(channels, nn.Conv3d(WIDTH, classes, 3))

def table(classes, channels):
    made = net(channels)
    made.table = nn.Parameter(torch.zeros(1, 2, 1, 2, 1))
    return made
"""


@pytest.fixture
def talkative(tmp_path, monkeypatch):
    name = f"talkative_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TALKATIVE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["overtone", "inspect", "--json"])
    yield name
    sys.modules.pop(name, None)


def test_what_factories_print_is_no_output_and_our_arguments_are_not_theirs(talkative, capsys):
    model = build_model(f"{talkative}:talks", classes=4, channels=2)
    assert model[0].out_channels == 7
    assert capsys.readouterr() == ("", "imported\nbuilt []\n")
    assert sys.argv == ["overtone", "inspect", "--json"]


@pytest.mark.parametrize("attribute", ["wants", "leaves"])
def test_factories_that_end_the_program_are_refused(attribute, talkative, capsys):
    message = "it ends the program, as one does that wants arguments of its own"
    with pytest.raises(UsageError, match=rf"^cannot build the model '{talkative}:{attribute}': {message}$"):
        build_model(f"{talkative}:{attribute}", classes=4, channels=2)
    assert capsys.readouterr().out == ""


def test_modules_that_end_the_program_or_fail_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for text, reason in (("raise SystemExit(3)", "it ends the program"), ("1 / 0", "ZeroDivisionError: division by")):
        name = f"failing_{len(text)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(
            UsageError, match=rf"^model \(='{name}:net'\) must be importable as package.module:factory: {reason}"
        ):
            build_model(f"{name}:net", classes=4, channels=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("scripted", r"must be ordinary Python: its part '1' is scripted or traced$"),
        ("whole", r"must be ordinary Python: it is scripted or traced$"),
        ("volumes", r"must have weights of four dimensions at most: '1.weight' has 5$"),
        ("table", r"must have weights of four dimensions at most: 'table' has 5$"),
    ],
)
def test_factories_of_what_cannot_be_compressed_or_trained_are_refused(attribute, message, talkative):
    with pytest.raises(UsageError, match=rf"^model \(='{talkative}:{attribute}'\) {message}"):
        build_model(f"{talkative}:{attribute}", classes=4, channels=2)


def test_factories_that_fail_are_refused(factories):
    with pytest.raises(UsageError, match=rf"^cannot build the model '{factories}:broken': KeyError: 'boom'$"):
        build_model(f"{factories}:broken", classes=4, channels=2)


@pytest.mark.parametrize("name", ["no_such_package:make", ":make", ".relative:make", "torch:"])
def test_factories_that_cannot_be_imported_are_refused(name):
    with pytest.raises(UsageError, match=rf"model \(='{name}'\) must be importable as package.module:factory: "):
        build_model(name, classes=4, channels=2)


def test_unknown_names_are_refused_with_the_nearest_known():
    with pytest.raises(UsageError, match=r"model \(='resnet21'\) must be one of resnet8, .*did you mean .*resnet20"):
        build_model("resnet21", classes=4, channels=3)
    with pytest.raises(UsageError, match=r"model \(='qqq'\) must be .* or package.module:factory$"):
        build_model("qqq", classes=4, channels=3)
    with pytest.raises(UsageError, match=r"model \(='fasterrcnn_resnet50_fpn'\) must be one of"):
        build_model("fasterrcnn_resnet50_fpn", classes=4, channels=3)


def test_torchvision_takes_three_channels_alone():
    with pytest.raises(UsageError, match=r"^channels \(=1\) must be 3 for the model 'resnet18'$"):
        build_model("resnet18", classes=4, channels=1)


def test_initial_weights_come_from_pytorchs_generator():
    states = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(build_model("resnet8", classes=4, channels=3).conv1.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("name", "part"), [("googlenet", "aux1"), ("inception_v3", "AuxLogits")])
def test_classifiers_for_training_alone_are_left_away(name, part, tmp_path):
    model = build_model(name, classes=6, channels=3)
    assert not any(key.startswith(part) for key in model.state_dict())
    published = torchvision.models.get_model(name, weights=None, num_classes=6, init_weights=False)
    assert any(key.startswith(part) for key in published.state_dict())
    torch.save(published.state_dict(), tmp_path / "w.pt")
    load_weights(model, str(tmp_path / "w.pt"), name=name)
    published.transform_input = True  # as torchvision sets it for its own weights
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), published.eval()(images))
    assert model.train()(images).shape == (2, 6)


def test_a_network_of_the_users_own_gives_logits_for_the_classes(factories):
    model = nn.Sequential(nn.Conv2d(3, 6, 8), nn.BatchNorm2d(6), nn.Flatten()).train()
    check_outputs(f"{factories}:make", model, (3, 8, 8), 6)
    assert model.training
    assert model[1].num_batches_tracked == 0
    with pytest.raises(UsageError, match=r"must give \(2, 4\) logits for two images, it gives \(2, 6\)$"):
        check_outputs(f"{factories}:make", model, (3, 8, 8), 4)
    with pytest.raises(UsageError, match=r"it gives dict$"):
        check_outputs(f"{factories}:make", Named(), (3, 8, 8), 4)

    with pytest.raises(UsageError, match=r"cannot take two images: RuntimeError: .*invalid for input of size"):
        check_outputs(f"{factories}:make", One(), (3, 8, 8), 4)


class One(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.view(1, 3, 8, 8)


class Named(nn.Module):
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": images}


class Net(nn.Module):
    def __init__(self, classes: int = 4, channels: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return logits


def test_a_module_is_known_by_its_class():
    assert describe_module(Net()) == "object:Net"
    assert describe_module(type("Net", (nn.Module,), {"__module__": "elsewhere"})()) == "object:Net"
    assert is_object("object:Net")
    assert not is_factory("object:Net")
    assert not any(map(is_object, ("resnet8", "package.object:Net", "objects:Net", "object")))
    with pytest.raises(
        UsageError, match=r"^the network 'object:Net' was given as an object: give it again in Python, as model$"
    ):
        build_model("object:Net", classes=4, channels=2)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_copy_of_a_module_is_trained_on_its_own(fill, images, frozen):
    module, x = fill(Net()), images(5, 2, 8, 8)
    module.train().requires_grad_(not frozen)
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    copied = copy_module(module)
    assert type(copied) is Net
    assert not any(part.training for part in copied.modules())
    assert [part.training for part in (module, module.conv, module.norm)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    optimizer = torch.optim.SGD(copied.parameters(), 1.0)
    copied.train()(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.grad is not None for value in copied.parameters())
    assert not torch.equal(copied.conv.weight, before["conv.weight"])
    assert all(value.grad is None and value.requires_grad != frozen for value in module.parameters())


def with_shared(net: Net) -> Net:
    net.other = nn.Conv2d(2, 6, 3)
    net.other.weight = net.conv.weight
    return net


def after_a_pass(net: Net) -> Net:
    net(torch.zeros(2, 2, 8, 8))
    return net


def with_conv(change):
    def changed(net: Net) -> Net:
        net.conv = change(net.conv)
        return net

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (lambda net, d=d: net.to(d), rf"must have float32 weights: 'conv.weight' is {d}$".replace("torch.", ""))
            for d in (torch.float16, torch.float64, torch.bfloat16)
        ),
        (with_conv(nn.Module.half), r"must have float32 weights: 'conv.weight' is float16$"),
        (with_shared, r"must hold each weight once: 'conv.weight' is 'other.weight' too$"),
        (with_conv(lambda conv: nn.LazyConv2d(6, 3)), r"must be given an image in its factory: its layer 'conv' is la"),
        (with_conv(nn.utils.spectral_norm), r"must have plain weights: those of its layer 'conv' are computed"),
        (
            lambda net: after_a_pass(with_conv(nn.utils.spectral_norm)(net)),
            r"must have plain weights: those of its layer 'conv' are computed",
        ),
    ],
)
def test_modules_without_plain_weights_are_refused(change, message):
    with pytest.raises(UsageError, match=rf"^model \(='object:Net'\) {message}"):
        copy_module(change(Net()))


def test_a_compiled_module_is_the_one_that_was_compiled():
    net = Net()
    compiled = torch.compile(net)
    assert describe_module(compiled) == "object:Net"
    assert type(copy_module(compiled)) is Net
    net.conv = torch.compile(net.conv)
    with pytest.raises(
        UsageError, match=r"^model \(='object:Net'\) must be compiled as a whole, .* its part 'conv' al"
    ):
        copy_module(net)


def test_a_module_that_cannot_be_copied_is_refused():
    net = Net()
    net.lock = threading.Lock()
    with pytest.raises(UsageError, match=r"^cannot copy the model 'object:Net': TypeError: cannot pickle .*lock"):
        copy_module(net)


@pytest.mark.parametrize("other", ["resnet8", None, Net])
def test_what_is_no_module_is_not_copied(other):
    with pytest.raises(UsageError, match=r"^model \(=.*\) must be a torch.nn.Module$"):
        copy_module(other)


def test_outputs_of_a_module_are_checked_and_its_modes_stay():
    net = Net().train()
    net.norm.eval()
    check_outputs("object:Net", net, (2, 8, 8), 4)
    with pytest.raises(
        UsageError, match=r"^model \(='object:Net'\) must give \(2, 5\) logits for two images, it gives"
    ):
        check_outputs("object:Net", net, (2, 8, 8), 5)
    with pytest.raises(UsageError, match=r"^the model 'object:Net' cannot take two images: RuntimeError: "):
        check_outputs("object:Net", net, (3, 8, 8), 4)
    assert [part.training for part in (net, net.conv, net.norm)] == [True, True, False]

"""Studies begun and opened from Python, without Ray."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from search.api.create import create_study, load_study
from search.commands.cli import run
from search.study.plan import StudyPlan
from spaces import NetworkConfig, save_weights
from trainers.data import DataSpec
from trainers.training.recipe import RECIPES


class Net(nn.Module):
    """A network of the user's own, for gray images of 8 x 8 pixels and four classes."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu, classes: int = 4) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.conv(x)).mean((2, 3)))


Images = tuple[Tensor, Tensor]


@pytest.fixture
def net(generator: torch.Generator) -> Net:
    net = Net()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(generator=generator)
    return net


@pytest.fixture
def images(generator: torch.Generator) -> Images:
    return torch.randn(80, 1, 8, 8, generator=generator), torch.arange(80) % 4


@pytest.fixture
def create(ledger: Ledger) -> Callable[..., Any]:
    def call(name: str = "own", **settings: Any) -> Any:
        return create_study(name, store=ledger.store, progress=False, **settings)

    return call


def test_every_setting_is_in_the_record(create: Callable[..., Any], ledger: Ledger, weights: Path) -> None:
    given = {
        "objectives": ["score", "flops"],
        "granularity": "layer",
        "minimum_templates": 4,
        "saliency": "gradient",
        "init": "least_squares",
        "epochs": 2,
        "seed": 7,
        "sampler": "random",
        "miss_rate": 0.0,
        "keep": "all",
        "trials": 9,
    }
    study = create(
        model="resnet8",
        weights=weights,
        data="digits",
        train_limit=96,
        max_size="300kB",
        max_flops=5e6,
        space={"all": {"bits": [8, 4]}},
        recipe="approxconv",
        **given,
    )
    record = study.record()
    assert record["objectives"] == ["val_top1", "flops"]
    assert record["budget"] == {"max_size": 300_000, "max_flops": 5_000_000}
    assert {name: record[name] for name in given if name != "objectives"} == {
        name: value for name, value in given.items() if name != "objectives"
    }
    assert record["data"]["train_limit"] == 96
    plan = StudyPlan.from_record(record)
    assert (plan.recipe, plan.space) == (RECIPES["approxconv"], {"all": {"bits": [8, 4]}})
    assert (
        create(
            model="resnet8",
            weights=weights,
            data=DataSpec(train_limit=96),
            max_size=300e3,
            max_flops="5M",
            space={"all": {"bits": [8, 4]}},
            recipe=RECIPES["approxconv"],
            **given,
        ).record()
        == record
    )
    with pytest.raises(UsageError, match="study 'own' exists with epochs 2, 3 was given: take another name"):
        create(
            model="resnet8",
            weights=weights,
            data="digits",
            train_limit=96,
            max_size="300kB",
            max_flops="5M",
            space={"all": {"bits": [8, 4]}},
            recipe="approxconv",
            **{**given, "epochs": 3},
        )
    assert load_study("own", store=ledger.store).record() == record


def test_defaults_are_those_of_a_plan(create: Callable[..., Any], weights: Path) -> None:
    record = create(model="resnet8", weights=weights, data="digits").record()
    plan = StudyPlan(model="resnet8", weights=str(weights), data=DataSpec()).located()
    settings = json.loads(json.dumps(plan.to_record()))
    assert {name: record[name] for name in settings} == settings


def test_a_module_counts_by_what_it_holds_and_computes(
    create: Callable[..., Any], net: Net, images: Images, tmp_path: Path
) -> None:
    study = create(model=net, data=images)
    assert study.record()["model"] == "object:Net"
    assert study.record()["data"]["name"] == "object:tensors"
    assert study.record()["dataset"] == "object:tensors"
    copied = Net()
    copied.load_state_dict(net.state_dict())
    assert create(model=copied, data=(images[0].clone(), images[1])).record() == study.record()
    save_weights(net, tmp_path / "w.safetensors", {})
    assert create(model=Net(), weights=tmp_path / "w.safetensors", data=images).record() == study.record()
    other = Net(torch.tanh)
    other.load_state_dict(net.state_dict())
    with pytest.raises(UsageError, match=r"study 'own' was begun with another network, of other outputs$"):
        create(model=other, data=images)
    dropping = Net()
    dropping.dropout = nn.Dropout(0.5)
    dropping.load_state_dict(net.state_dict())
    with pytest.raises(UsageError, match=r"study 'own' was begun with another network, of other structure$"):
        create(model=dropping, data=images)
    with pytest.raises(UsageError, match="study 'own' exists with weights_sha256"):
        create(model=Net(), data=images)
    with pytest.raises(UsageError, match="study 'own' exists with data_fingerprint"):
        create(model=net, data=(images[0] + 1, images[1]))


def test_trials_of_another_network_are_not_taken_for_those_of_this(
    create: Callable[..., Any], net: Net, images: Images
) -> None:
    from search.study.reuse import comparable_studies
    from search.study.study_ledger import StudyLedger

    other = Net(torch.tanh)
    other.load_state_dict(net.state_dict())
    first = create("first", model=net, data=images)
    create("same", model=net, data=images)
    create("tanh", model=other, data=images)
    create("images", model=net, data=(images[0] * 2, images[1]))
    create("seed", model=net, data=images, seed=1)
    create("old", model=net, data=images)
    record = json.loads(first.ledger.store.read_bytes("studies/old.json"))  # of when bits rounded inputs too
    first.ledger.store.write_bytes("studies/old.json", json.dumps({**record, "format": 1}).encode())
    studies = comparable_studies(StudyLedger(first.ledger, "first"))
    assert [study.name for study in studies] == ["same"]
    with pytest.raises(OvertoneError, match=r"old\.json' has version 1, older than 2: bits rounded the layers' inputs"):
        create("warm", model=net, data=images, warm_start=["old"])
    with pytest.raises(UsageError, match=r"warm_start \(='tanh'\) must be .*; its network \(outputs\) differs$"):
        create("warm", model=net, data=images, warm_start=["tanh"])


def test_a_network_may_have_more_outputs_than_the_images_have_labels(
    create: Callable[..., Any], net: Net, images: Images
) -> None:
    study = create(model=net, data=(images[0], images[1].clamp(max=2)))
    assert study._load(False).data.classes == 4
    with pytest.raises(UsageError, match=r"labels \(=0 to 4\) must be below 4, the number of the network's outputs"):
        create("five", model=net, data=(images[0], torch.arange(80) % 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet8"}, r"weights \(=None\) must be given for the model 'resnet8'$"),
        ({"model": 8}, r"model \(=8\) must be a network's name or a torch.nn.Module$"),
        ({"model": Net(classes=3)}, r"labels \(=0 to 3\) must be below 3"),
        ({"data": "cifar11"}, r"dataset \(='cifar11'\) must be one of 'digits'"),
        ({"data": 5}, r"data \(=all of int\) must be \(images, labels\), a dataset"),
        ({"data": "digits"}, r"model \(='object:Net'\) must give \(2, 10\) logits for two images, it gives \(2, 4\)"),
        (
            {"data": (torch.zeros(8, 1, 8, 8).byte(), torch.arange(8) % 4)},
            "mean and std must be given for uint8 images",
        ),
        ({"data": (torch.zeros(80, 3, 8, 8), torch.arange(80) % 4)}, "the network Net cannot take 3x8x8 images"),
        ({"weights": "nowhere.pt"}, r"weights \(='nowhere.pt'\) must be a file"),
        ({"sampler": "luck"}, r"sampler \(='luck'\) must be one of"),
        ({"recipe": "best"}, r"recipe \(='best'\) must be one of finetune, .*, or a TrainingRecipe"),
        ({"space": "none.yaml"}, r"space \(='none.yaml'\) must be a readable YAML file"),
        ({"space": {"conv": {"bits": [0]}}}, "cannot take space.conv.bits = 0: bits"),
        ({"max_size": "tiny"}, r"max_size \(='tiny'\) must be an amount above 0"),
        ({"max_size": 10}, "no config of the space meets the budget"),
        ({"trials": 0}, r"trials \(=0\) must be at least 1"),
        ({"colour": 1}, r"setting \(='colour'\) must be one of create_study's, or of data_dir, seed, train_limit"),
        ({"augment": "mirror"}, r"augment \(='mirror'\) must be one of none, shift, crop-flip"),
    ],
)
def test_what_cannot_begin_is_one_sentence_and_leaves_no_study(
    create: Callable[..., Any], ledger: Ledger, net: Net, images: Images, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        create(**{"model": net, "data": images, **changes})
    assert "\n" not in str(refused.value)
    assert ledger.studies() == []


def test_a_study_that_is_not_there_is_named_with_the_closest(
    create: Callable[..., Any], net: Net, images: Images
) -> None:
    study = create("mine", model=net, data=images)
    with pytest.raises(UsageError, match=r"study 'mime' does not exist in store .*; the closest are mine"):
        load_study("mime", store=study.ledger.store)


def test_the_command_line_says_what_it_cannot_do_with_objects_and_answers_all_else(
    create: Callable[..., Any], net: Net, images: Images, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = create(model=net, data=images)
    common = ("--study", "own", "--store", study.ledger.store.uri)
    for command in ("status", *common), ("query", *common), ("compact", *common), ("importance", *common):
        assert run(list(command)) == 0
    capsys.readouterr()
    sentence = "overtone: the study was begun with the object 'object:Net': give it again in Python, as model\n"
    assert run(["resume", *common]) == 2
    assert capsys.readouterr().err == sentence
    plan = StudyPlan.from_record(study.record())
    spec = plan.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d")
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    alone = subprocess.run(
        [sys.executable, "-m", "trainers", str(tmp_path / "spec.json")], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 2
    assert alone.stderr == "the images 'object:tensors' were given as objects: give them again in Python, as data\n"


def test_a_file_of_other_weights_does_not_fit_a_module(
    create: Callable[..., Any], net: Net, images: Images, weights: Path
) -> None:
    with pytest.raises(UsageError, match=r"do not fit the model 'object:Net': they lack 'conv.weight'"):
        create(model=net, data=images, weights=weights)

import dataclasses
import hashlib
import json

import pytest

from layers import UsageError
from spaces import BlockConfig, Network, NetworkConfig, build_model
from trainers.data import DataSpec
from trainers.spec import TrialSpec
from trainers.training.recipe import TrainingRecipe

SPEC = TrialSpec(
    model="resnet8",
    weights="w.safetensors",
    weights_sha256="ab",
    data_fingerprint="cd",
    config=NetworkConfig(blocks={"layer1": BlockConfig(basis="cosine", harmonics=(2, 3), bits=6, exponent_block=16)}),
)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))


@pytest.mark.parametrize(
    "data", [DataSpec(), DataSpec(name="object:tensors", mean=[0.5, 0.25], std=2, augment="shift", train_limit=9)]
)
def test_a_spec_survives_json(data: DataSpec) -> None:
    spec = dataclasses.replace(SPEC, data=data)
    assert TrialSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    card = TrialSpec.from_json({**json.loads(json.dumps(spec.to_card())), "weights": spec.weights})
    assert card == spec


def test_a_specs_mean_must_be_numbers() -> None:
    data = {**dataclasses.asdict(DataSpec()), "name": "object:tensors", "mean": "a", "std": 1}
    with pytest.raises(UsageError, match=r"^mean \(='a'\) must be finite numbers, one a channel$"):
        TrialSpec.from_json({**SPEC.to_json(), "data": data})


def test_a_card_is_the_same_wherever_weights_and_data_lie() -> None:
    first, second = (
        dataclasses.replace(SPEC, weights=f"{folder}/w.safetensors", data=DataSpec(name=name, data_dir=folder))
        for folder, name in (("/home/me", "parquet:/home/me/cifar10/"), ("elsewhere", "parquet:cifar10"))
    )
    card = first.to_card()
    assert card == second.to_card()
    assert "/home" not in json.dumps(card)
    assert (card["weights"], card["data"]["name"]) == ("w.safetensors", "parquet:cifar10")
    assert first.to_json()["weights"] == "/home/me/w.safetensors"
    named = dataclasses.replace(SPEC, weights="ResNet18_Weights.IMAGENET1K_V1").to_card()
    assert named["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    assert TrialSpec.from_json(named).config == SPEC.config


@pytest.mark.parametrize(
    "change",
    [
        {"model": "resnet20"},
        {"weights_sha256": "ac"},
        {"data_fingerprint": "ce"},
        {"config": NetworkConfig()},
        {"recipe": TrainingRecipe(lr=0.5)},
        {"recipe": TrainingRecipe(distillation=0.5)},
        {"recipe": TrainingRecipe(milestones=(2.0,))},
        {"init": "least_squares"},
        {"epochs": 6},
        {"seed": 1},
    ],
)
def test_whatever_the_result_depends_on_changes_the_identity(network: Network, change: dict[str, object]) -> None:
    assert dataclasses.replace(SPEC, **change).digest(network) != SPEC.digest(network)


def test_the_identity_is_the_content_of_all_that_decides_the_result(network: Network) -> None:
    spec = dataclasses.replace(SPEC, recipe=TrainingRecipe(precision="fp32"))
    recipe = {
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "batch_size": 64,
        "lr_schedule": "one-cycle",
        "precision": "fp32",
        "label_smoothing": 0.0,
        "distillation": 0.0,
        "optimizer": "sgd",
        "milestones": [3.0],
        "warmup_epochs": 0.0,
        "ema_decay": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "rotation": 0.0,
        "drop_path_rate": 0.0,
        "gradual_pruning": 0.0,
        "grad_accum_steps": 1,
        "rounding": "nearest",
    }
    identity = {
        "model": "resnet8",
        "weights": "ab",
        "data": "cd",
        "network": network.digest(spec.config),
        "recipe": recipe,
        "init": "calibrated",
        "rounds_for": "outputs",
        "epochs": 5,
        "seed": 0,
    }
    assert spec.digest(network) == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def test_saliency_is_part_of_the_identity_where_it_chooses_templates(network: Network) -> None:
    pruned = dataclasses.replace(SPEC, config=NetworkConfig(blocks={"layer3": BlockConfig(pruning_rate=0.5)}))
    assert pruned.identity(network)["saliency"] == "magnitude"
    assert "saliency" not in SPEC.identity(network)
    for spec, equal in ((SPEC, True), (pruned, False)):
        assert (dataclasses.replace(spec, saliency="gradient").digest(network) == spec.digest(network)) == equal


def test_places_and_spellings_do_not_change_the_identity(network: Network) -> None:
    blocks = {**SPEC.config.blocks, "layer2": BlockConfig(basis="chebyshev", harmonics=(3, 3))}
    other = dataclasses.replace(
        SPEC,
        weights="elsewhere.safetensors",
        data=DataSpec(data_dir="elsewhere"),
        latency=True,
        config=NetworkConfig(blocks=blocks),
    )
    assert other.digest(network) == SPEC.digest(network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, r"epochs \(=-1\) must be a whole number of at least 0"),
        ({"seed": 2**63}, r"seed \(=9223372036854775808\) must be"),
        ({"init": "luck"}, r"init \(='luck'\) must be one of calibrated, least_squares"),
        ({"saliency": "luck"}, r"saliency \(='luck'\) must be one of magnitude, gradient"),
        ({"epoch": 5}, r"key \(='epoch'\) of the spec must be one of config, "),
        ({"recipe": {"format": 1, "lr": -1}}, r"lr \(=-1\) must be 0 or more"),
        ({"format": 1}, r"^the spec's format \(=1\) must be 2$"),
        (
            {"recipe": {"shape": "step"}},
            "^the recipe has no format: it is from a pre-release of Overtone and cannot be read$",
        ),
        ({"config": {"blocks": {"layer1": {"bit": 4}}}}, r"key \(='bit'\) of block 'layer1' must be one of"),
    ],
)
def test_what_is_not_allowed_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrialSpec.from_json({**SPEC.to_json(), **change})


def test_a_spec_of_when_bits_rounded_inputs_too_is_refused() -> None:
    data = SPEC.to_json()
    assert data.pop("format") == 2
    with pytest.raises(
        UsageError, match=r"^the spec has no format: in its pre-release of Overtone, bits rounded the l"
    ):
        TrialSpec.from_json(data)


def test_what_is_missing_is_named() -> None:
    data = SPEC.to_json()
    del data["weights_sha256"]
    with pytest.raises(UsageError, match=r"spec cannot be read: .*weights_sha256"):
        TrialSpec.from_json(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 5}, r"^model \(=5\) must be a text$"),
        ({"weights": None}, r"^weights \(=None\) must be a text$"),
        ({"recipe": {"format": 1, "nesterov": "false"}}, r"^nesterov \(='false'\) must be true or false$"),
        (
            {"recipe": {"format": 1, "lr_schedule": "cosine", "warmup_epochs": 9}},
            r"^warmup_epochs \(=9\) must be below the 5 epochs$",
        ),
        ({"recipe": 3}, r"^recipe \(=3\) must be a mapping of settings$"),
        ({"data": 3}, r"^spec cannot be read: "),
    ],
)
def test_values_of_the_wrong_kind_are_one_sentence(change, message):
    given = {"format": 2, "model": "resnet8", "weights": "w", "weights_sha256": "0", "data_fingerprint": "0"}
    assert TrialSpec.from_json(given).epochs == 5
    with pytest.raises(UsageError, match=message):
        TrialSpec.from_json({**given, **change})


def test_what_is_no_mapping_is_no_spec():
    with pytest.raises(UsageError, match=r"^spec \(=\[1\]\) must be a mapping of config, "):
        TrialSpec.from_json([1])

import dataclasses
import json
import math

import pytest

from layers.errors import UsageError
from trainers.training.recipe import RECIPES, TrainingRecipe


def test_the_papers_schedule_is_the_papers():
    paper = RECIPES["approxconv"]
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.lr_schedule) == (1e-4, 0.9, 5e-4, "step")
    assert [paper.lr_at(epoch, 5) for epoch in range(5)] == pytest.approx([1e-4, 1e-4, 1e-4, 1e-5, 1e-5])
    assert paper.lr_at(2.999, 5) == pytest.approx(1e-4)


def test_he_et_als_schedule_steps_at_half_and_three_quarters():
    resnet = RECIPES["resnet"]
    assert [resnet.lr_at(epoch, 164) for epoch in (0, 81, 82, 122, 123, 163)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_warm_up_rises_linearly_and_then_lets_go():
    cosine = TrainingRecipe(lr=0.8, lr_schedule="cosine", warmup_epochs=2.0)
    plain = TrainingRecipe(lr=0.8, lr_schedule="cosine")
    ratios = [cosine.lr_at(done, 8) / plain.lr_at(done, 8) for done in (0, 0.5, 1, 2, 5)]
    assert ratios == pytest.approx([0, 0.25, 0.5, 1, 1])


def test_a_schedule_survives_json():
    for recipe in RECIPES.values():
        written = json.loads(json.dumps(recipe.to_json()))
        assert written["format"] == 1
        assert TrainingRecipe.from_json(written) == recipe


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"lr": 0.1}, "^the recipe has no format: it is from a pre-release of Overtone and cannot be read$"),
        ({"shape": "step"}, "^the recipe has no format: it is from a pre-release of Overtone"),
        ({"format": 2}, r"^the recipe's format \(=2\) must be 1$"),
        ({"format": 1, "step_at": [3.0]}, r"^setting \(='step_at'\) of the recipe must be one of lr, momentum, "),
        ({"format": 1, "lr": "0.1"}, "^recipe cannot be read: "),
        ([1], r"^recipe \(=\[1\]\) must be a mapping of settings$"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(data, match):
    with pytest.raises(UsageError, match=match):
        TrainingRecipe.from_json(data)


def test_the_identity_has_every_setting():
    assert TrainingRecipe().identity().keys() == {field.name for field in dataclasses.fields(TrainingRecipe)}
    assert TrainingRecipe(ema_decay=0.9, mixup_alpha=0.1).identity() == {
        **TrainingRecipe().identity(),
        "ema_decay": 0.9,
        "mixup_alpha": 0.1,
    }


def test_the_step_comes_after_epoch_three_however_many_there_are():
    step = TrainingRecipe(lr=1.0, lr_schedule="step")
    assert [step.lr_at(epoch, 2) for epoch in range(2)] == [1.0, 1.0]
    assert [step.lr_at(epoch, 9) for epoch in (2, 3, 8)] == pytest.approx([1.0, 0.1, 0.1])


def test_cosine_falls_from_the_whole_rate_to_nothing():
    cosine = TrainingRecipe(lr=0.8, lr_schedule="cosine")
    assert [cosine.lr_at(done, 4) for done in (0, 1, 2, 3, 4)] == pytest.approx(
        [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5)), 0], abs=1e-12
    )


def test_one_cycle_rises_for_a_quarter_and_falls_for_the_rest():
    cycle = TrainingRecipe(lr=1.0, lr_schedule="one-cycle")
    assert [cycle.lr_at(done, 8) for done in (0, 1, 2, 5, 8)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


def test_constant_is_constant():
    assert {TrainingRecipe(lr=0.3, lr_schedule="constant").lr_at(done, 7) for done in (0, 3.5, 6.9)} == {0.3}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"lr": -1.0}, r"lr \(=-1.0\) must be 0 or more"),
        ({"lr": math.nan}, r"lr \(=nan\) must be 0 or more"),
        ({"momentum": math.inf}, r"momentum \(=inf\) must be 0 or more"),
        ({"weight_decay": -0.1}, r"weight_decay \(=-0.1\) must be 0 or more"),
        ({"batch_size": 1}, r"batch_size \(=1\) must be a whole number of at least 2"),
        ({"batch_size": 64.0}, r"batch_size \(=64.0\) must be a whole number"),
        ({"lr_schedule": "linear"}, r"lr_schedule \(='linear'\) must be one of step, cosine, one-cycle, constant"),
        ({"precision": "fp16"}, r"precision \(='fp16'\) must be one of auto, fp32, bf16"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(=1.0\) must be at least 0 and below 1"),
        ({"distillation": 1.5}, r"distillation \(=1.5\) must be from 0 to 1"),
        ({"distillation": math.nan}, r"distillation \(=nan\) must be from 0 to 1"),
        ({"optimizer": "adam"}, r"optimizer \(='adam'\) must be one of sgd, adamw"),
        ({"ema_decay": 1.0}, r"ema_decay \(=1.0\) must be at least 0 and below 1"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate \(=-0.1\) must be at least 0 and below 1"),
        ({"mixup_alpha": -1.0}, r"mixup_alpha \(=-1.0\) must be 0 or more"),
        ({"rotation": 181.0}, r"rotation \(=181.0\) must be from 0 to 180 degrees"),
        (
            {"grad_accum_steps": 33},
            r"grad_accum_steps \(=33\) must be a whole number from 1 to half the batch_size \(=64\)",
        ),
        ({"rounding": "up"}, r"rounding \(='up'\) must be one of nearest, stochastic"),
        ({"milestones": (3.0, 2.0)}, r"milestones \(=\[3.0, 2.0\]\) must be rising epochs above 0"),
        ({"milestones": (0.0,)}, r"milestones \(=\[0.0\]\) must be rising epochs above 0"),
        ({"warmup_epochs": 1.0}, r"warmup_epochs \(=1.0\) must be 0 for one-cycle, which has a rise of its own"),
        ({"optimizer": "adamw", "momentum": 1.0}, r"momentum \(=1.0\) must be below 1 for adamw"),
        ({"optimizer": "adamw", "nesterov": True}, r"nesterov \(=True\) must be false without sgd"),
        ({"momentum": 0.0, "nesterov": True}, r"nesterov \(=True\) must be false without sgd and a momentum above 0"),
    ],
)
def test_wrong_values_are_named(wrong, match):
    with pytest.raises(UsageError, match=match):
        TrainingRecipe(**wrong)


def test_the_presets_are_what_their_sources_and_the_readme_say():
    """Costain & Prisacariu's appendix; Miles & Mikolajczyk, section 4; the rest is ours."""
    convnext, templates, imagenet = (
        RECIPES[name] for name in ("approxconv-convnext", "templates", "templates-imagenet")
    )
    assert (RECIPES["approxconv"].batch_size, RECIPES["approxconv"].optimizer) == (128, "sgd")
    assert (convnext.lr, convnext.batch_size, convnext.lr_schedule, convnext.milestones) == (5e-5, 128, "step", (3.0,))
    assert convnext.drop_path_rate == 0.1
    assert (templates.lr, templates.batch_size, templates.optimizer, templates.rotation) == (0.1, 128, "sgd", 15.0)
    assert [templates.lr_at(epoch, 300) for epoch in (149, 150, 225)] == pytest.approx([0.1, 0.01, 0.001])
    assert (imagenet.optimizer, imagenet.mixup_alpha, imagenet.cutmix_alpha, imagenet.warmup_epochs) == (
        "adamw",
        0.1,
        1.0,
        5.0,
    )
    assert (RECIPES["baseline"].lr, RECIPES["baseline"].nesterov, RECIPES["baseline"].lr_schedule) == (
        0.1,
        True,
        "one-cycle",
    )


def test_a_warm_up_that_leaves_no_epoch_is_refused():
    imagenet = RECIPES["templates-imagenet"]
    for epochs in (0, 6, 300):
        imagenet.check_length(epochs)
    with pytest.raises(UsageError, match=r"warmup_epochs \(=5\) must be below the 5 epochs"):
        imagenet.check_length(5)


def test_a_rate_whose_first_step_is_beyond_the_end_never_falls():
    resnet = RECIPES["resnet"]
    assert [resnet.never_falls(epochs) for epochs in (0, 1, 82, 83, 164)] == [False, True, True, False, False]
    assert not TrainingRecipe(lr_schedule="step", milestones=()).never_falls(3)
    assert not TrainingRecipe(milestones=(9.0,)).never_falls(3)

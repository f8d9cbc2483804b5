"""A teacher's outputs are kept for the trainings that see the same images, and change no bit of what is learned."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from trainers.data import Data, Split
from trainers.training import loop
from trainers.training.distillation import Teacher
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

RECIPE = TrainingRecipe(batch_size=16, distillation=0.5, rotation=5.0, precision="fp32")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path))
    return tmp_path


class Counting(nn.Module):
    """A network that knows how many batches it was asked for; copies count together."""

    def __init__(self, asked: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
        self._asked = asked

    def __deepcopy__(self, memo: dict[int, object]) -> "Counting":
        found = Counting(self._asked)
        found.load_state_dict(self.state_dict())
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self._asked.append(len(images))
        return self.layers(images)


def data(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return Split(images=images, labels=torch.randint(4, (count,), generator=generator))

    return Data(train=split(70), val=split(8), test=split(8), classes=4, mean=(0.5,), std=(0.25,), augment="crop-flip")


def student(*, dropout: float = 0.0, compressed: bool = False) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4 * 36, 4))
    form = LayerForm(basis="cosine", harmonics=(2, 2))
    return compress_model(model, {"0": form}) if compressed else model


def trained(
    teacher: nn.Module | None = None, *, found: Data | None = None, recipe: TrainingRecipe = RECIPE, seed: int = 0, **of
) -> tuple[int, dict[str, torch.Tensor]]:
    """How many batches a teacher was asked for in two epochs of five batches each, and what was learned."""
    asked: list[int] = []
    model = student(**of)
    teacher = Counting(asked) if teacher is None else teacher
    list(TrainingLoop(model, found or data(), recipe, epochs=2, seed=seed, device="cpu", teacher=teacher))
    return len(asked), model.state_dict()


def alone(monkeypatch: pytest.MonkeyPatch, **of) -> dict[str, torch.Tensor]:
    """What is learned where nothing is kept."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_MOST_OUTPUTS", 0)
        return trained(**of)[1]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_training_asks_a_teacher_and_others_its_outputs(monkeypatch, precision):
    recipe = replace(RECIPE, precision=precision)
    first, learned = trained(recipe=recipe)
    again, once_more = trained(recipe=recipe)
    assert (first, again) == (10, 2)
    assert same(learned, once_more)
    assert same(learned, alone(monkeypatch, recipe=recipe))


@pytest.mark.parametrize("of", [{"dropout": 0.5}, {"compressed": True}])
def test_other_networks_see_the_same_images(monkeypatch, of):
    trained()
    asked, learned = trained(**of)
    assert asked == 2
    assert same(learned, alone(monkeypatch, **of))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"found": data(1)},
        {"found": replace(data(), augment="shift")},
        *({"recipe": replace(RECIPE, **change)} for change in ({"batch_size": 12}, {"rotation": 9.0})),
    ],
)
def test_other_images_are_asked_for(monkeypatch, other):
    trained()
    asked, learned = trained(**other)
    assert asked >= 10
    assert same(learned, alone(monkeypatch, **other))


class Louder(Counting):
    """The same weights in another network."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Louder":
        found = Louder(self._asked)
        found.load_state_dict(self.state_dict())
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * 3


def test_what_another_network_of_the_same_weights_said_does_not_count(monkeypatch):
    trained()
    asked: list[int] = []
    _, learned = trained(Louder(asked))
    assert len(asked) == 12  # the first batch of each epoch twice
    assert same(learned, alone(monkeypatch, teacher=Louder([])))
    asked.clear()
    assert same(trained(Louder(asked))[1], learned)
    assert len(asked) == 2


@pytest.mark.parametrize("change", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 0.2}, {"grad_accum_steps": 2}])
def test_images_of_one_network_alone_are_not_kept(cache, change):
    for _ in range(2):
        asked, _ = trained(recipe=replace(RECIPE, **change))
        assert asked == 10 * change.get("grad_accum_steps", 1)
    assert list(cache.iterdir()) == []


def test_no_more_is_kept_than_is_allowed(cache, monkeypatch):
    monkeypatch.setattr(loop, "_MOST_OUTPUTS", 2 * 70 * 4 - 1)
    trained()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(loop, "_MOST_OUTPUTS", 2 * 70 * 4)
    trained()
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_is_written_anew(cache):
    _, learned = trained()
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert trained()[0] == 10
    asked, once_more = trained()
    assert asked == 2
    assert same(learned, once_more)


def test_a_cache_that_cannot_be_written_stops_nothing(cache, monkeypatch):
    (cache / "file").touch()
    monkeypatch.setenv("OVERTONE_CACHE", str(cache / "file"))
    _, learned = trained()
    assert trained()[0] == 10
    assert same(learned, alone(monkeypatch))


def test_an_epoch_that_was_left_is_not_kept(cache):
    teacher = Teacher(Counting([]), torch.device("cpu"))
    images = torch.randn(8, 1, 8, 8)

    def interrupted() -> None:
        with teacher.epoch("a" * 64, 16):
            teacher(images)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with teacher.epoch("a" * 64, 16):
        teacher(images)
    assert list(cache.iterdir()) == []
    with teacher.epoch("a" * 64, 16):
        expected = [teacher(images), teacher(-images)]
    kept = Teacher(Counting([]), torch.device("cpu"))
    with kept.epoch("a" * 64, 16):
        assert torch.equal(kept(images), expected[0])
        assert torch.equal(kept(images), expected[1]), "the second batch is known by its place"


def test_a_teacher_whose_memory_is_needed_keeps_nothing(cache):
    asked: list[int] = []
    teacher = Teacher(Counting(asked), torch.device("cpu"))
    images = torch.randn(8, 1, 8, 8)
    expected = copy.deepcopy(teacher)(images)
    with teacher.epoch("a" * 64, 16):
        teacher(images)
        teacher.release()
        torch.testing.assert_close(torch.cat([teacher(images[:4]), teacher(images[4:])]), expected)
    assert list(cache.iterdir()) == []

"""What is asked of CUDA's graphs, with a stand-in that records and replays on the CPU as they do on a GPU."""

import copy
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from layers import CompressedLinear, LayerForm, compress_layer, compress_model, compressed_layers
from layers.blockfloat import ROUNDINGS
from layers.errors import OvertoneWarning
from layers.templates.transforms import TRANSFORMS
from trainers.data import Data, Split
from trainers.estimate import estimate_trial
from trainers.runtime import cuda_graphs
from trainers.runtime.cuda_graphs import graph_bytes, maybe_cuda_graph
from trainers.training import loop
from trainers.training.loop import TrainingLoop
from trainers.training.loss import Loss
from trainers.training.recipe import TrainingRecipe

CPU = torch.device("cpu")


class Recorder:
    """`torch.cuda.make_graphed_callables` on a CPU: warms up, takes one shape, gives all in static memory."""

    def __init__(self) -> None:
        self.recorded, self.replayed, self.fails = 0, 0, False
        self.shapes = []

    def __call__(self, module, sample, *, allow_unused_input):
        assert not torch.is_autocast_enabled("cpu"), "the backward pass would be recorded under autocast"
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        self.shapes.append(len(sample[0]))
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        for _ in range(3):
            outputs = module(*sample)
            if outputs.requires_grad:
                torch.autograd.grad(outputs, trained, torch.empty_like(outputs), allow_unused=True)
        mode, run = (module.training, torch.is_grad_enabled()), module.forward
        kept, given = [torch.zeros_like(weight) for weight in trained], torch.zeros_like(outputs)
        recorder = self

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, images, *weights):
                sample[0].copy_(images)
                with torch.enable_grad():
                    ctx.outputs = run(sample[0])
                recorder.replayed += 1
                return given.copy_(ctx.outputs.detach()).detach()

            @staticmethod
            def backward(ctx, gradient):
                found = torch.autograd.grad(ctx.outputs, trained, gradient, allow_unused=True)
                for place, value in zip(kept, found, strict=True):
                    if value is not None:
                        place.copy_(value)
                return None, *(None if v is None else p.detach() for p, v in zip(kept, found, strict=True))

        def replay(images):
            assert (module.training, torch.is_grad_enabled()) == mode
            assert images.shape == sample[0].shape
            assert images.stride() == sample[0].stride()
            return Replay.apply(images, *trained)

        module.forward = replay
        return module


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(cuda_graphs, "_DEVICES", ("cpu",))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    return found


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(96, 3)]
        return nn.Sequential(*layers)


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 1, 6, 6), generator=generator, dtype=torch.uint8)
    split = Split(images=images, labels=torch.randint(3, (50,), generator=generator))
    return Data(train=split, val=split, test=split, classes=3, mean=(0.5,), std=(0.25,), augment="shift")


def trained(recipe: TrainingRecipe, dropout: float = 0.0):
    model = network(dropout)
    teacher = network() if recipe.distillation else None
    history = list(TrainingLoop(model, data(), recipe, epochs=3, seed=0, device="cpu", teacher=teacher))
    return [replace(epoch, seconds=0) for epoch in history], model.state_dict()


RECIPES = {
    "fp32": TrainingRecipe(batch_size=16, precision="fp32"),
    "bf16": TrainingRecipe(batch_size=16, precision="bf16"),
    "distilled": TrainingRecipe(batch_size=16, precision="bf16", distillation=0.5),
    "averaged": TrainingRecipe(batch_size=16, precision="fp32", ema_decay=0.9, optimizer="adamw"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training_by_replay_is_training(recorder, monkeypatch, tmp_path, recipe):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "recorded"))
    history, state = trained(recipe)
    assert recorder.recorded == (2 if recipe.distillation else 1)
    batches = 3 * 3 - 1  # of 50 images three batches of 16; the first runs as ever, and so do the two left over
    assert recorder.replayed == batches * recorder.recorded
    monkeypatch.setattr(cuda_graphs, "_DEVICES", ("cuda",))
    for cache in ("plain", "recorded"):  # where a teacher's outputs are kept
        monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / cache))
        plainly, plain_state = trained(recipe)
        assert history == plainly
        assert all(torch.equal(value, plain_state[name]) for name, value in state.items())


def test_recording_leaves_norms_and_draws_as_they_were(recorder):
    model, images = network(dropout=0.5), torch.rand(4, 1, 6, 6)
    passes = maybe_cuda_graph(model, CPU)
    passes(images)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    passes(images).sum().backward()
    once = network(dropout=0.5)
    once.load_state_dict(before)
    torch.set_rng_state(drawn)
    once(images).sum().backward()
    assert recorder.recorded == 1
    assert all(torch.equal(value, once.state_dict()[name]) for name, value in model.state_dict().items())
    for weight, other in zip(model.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=0)


def test_a_network_that_is_not_small_is_not_recorded(recorder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30 + 1)
    passes = maybe_cuda_graph(network(), CPU)
    for _ in range(3):
        passes(torch.rand(4, 1, 6, 6))
    assert recorder.recorded == 0
    assert graph_bytes(2**30, CPU) == 2**30
    assert graph_bytes(2**30 + 1, CPU) == 0


def test_gradients_that_add_up_are_not_replayed(recorder):
    trained(TrainingRecipe(batch_size=16, precision="fp32", grad_accum_steps=2))
    assert recorder.recorded == 0


def test_memory_that_runs_out_ends_replay(recorder, monkeypatch):
    fails = iter([False, True])

    class Short(Loss):
        def __call__(self, *given):
            if next(fails, False):
                raise torch.OutOfMemoryError("no memory")
            return super().__call__(*given)

    monkeypatch.setattr(loop, "Loss", Short)
    tuning = TrainingLoop(network(), data(), RECIPES["fp32"], epochs=1, seed=0, device="cpu")
    replay = weakref.ref(tuning._forward)
    list(tuning)
    assert (recorder.recorded, recorder.replayed, tuning.pieces) == (1, 1, 2)
    assert replay() is None


def test_where_recording_fails_training_goes_on_as_ever(recorder, monkeypatch):
    recorder.fails = True
    with pytest.warns(OvertoneWarning, match="continues without CUDA graphs: operation not permitted") as warned:
        history, _ = trained(RECIPES["fp32"])
    assert len(warned) == 1
    monkeypatch.setattr(cuda_graphs, "_DEVICES", ("cuda",))
    assert history == trained(RECIPES["fp32"])[0]


def test_estimates_count_and_time_what_is_recorded(recorder, monkeypatch):
    asked = {"epochs": 1, "train_images": 16, "val_images": 16, "device": "cpu"}

    def estimated(**settings):
        return estimate_trial(network(), (1, 6, 6), recipe=TrainingRecipe(precision="fp32", **settings), **asked)

    recorded = estimated(distillation=0.5)
    whole = [count for count in recorder.shapes if count == 16]
    assert len(whole) == 2  # the network and its teacher
    recorder.shapes.clear()
    in_pieces = estimated(grad_accum_steps=2)
    assert recorder.shapes == []
    monkeypatch.setattr(cuda_graphs, "_DEVICES", ("cuda",))
    assert recorded.activations_bytes == 2 * estimated(distillation=0.5).activations_bytes
    assert in_pieces.activations_bytes == estimated(grad_accum_steps=2).activations_bytes


def test_a_cpu_records_nothing(monkeypatch):
    model = network()
    assert maybe_cuda_graph(model, CPU) is model
    assert graph_bytes(1, CPU) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(RECIPES["fp32"])


FORMS = {
    "series": LayerForm(basis="cosine", harmonics=(2, 1)),
    "per filter": LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter"),
    "blocks": LayerForm(bits=4, exponent_block=16, activation_bits=4, activation_block=2),
    "scaled": LayerForm(bits=3, scale="bfloat16"),
    "channels": LayerForm(bits=4, exponent_block=2, exponent_axis="channel"),
    **{
        f"{transform}, {groups} groups": LayerForm(
            templates=3, groups=groups, transform=transform, assignment=None if transform == "zero" else "residual"
        )
        for transform in TRANSFORMS
        for groups in (1, 2)
    },
    "all": LayerForm(
        basis="chebyshev", harmonics=(2, 2), templates=3, groups=2, transform="affine", assignment="residual", bits=6
    ),
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_compressed_layers_train_without_a_look_at_values(form, rounding):
    """A device without values refuses such a look, as a GPU does while it records."""
    conv = compress_layer(nn.Conv2d(4, 8, 3, padding=1), form)
    model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.Flatten(), CompressedLinear(nn.Linear(128, 3), LayerForm(bits=4)))
    for layer in compressed_layers(model).values():
        layer.rounding = rounding
    model = model.to("meta").train()
    model(torch.empty(2, 4, 4, 4, device="meta")).sum().backward()
    assert all(weight.grad is not None and weight.grad.is_meta for weight in model.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_cuda_trains_by_replay_as_ever(form, monkeypatch):
    def run():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 8, 3, padding=1),
                nn.Flatten(),
                nn.Linear(288, 3),
            )
        model = compress_model(model, {"3": form})
        list(TrainingLoop(model, data(), RECIPES["fp32"], epochs=3, seed=0, device="cuda"))
        return model.state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replayed = run()
    monkeypatch.setattr(cuda_graphs, "_DEVICES", ())
    for name, value in run().items():
        torch.testing.assert_close(replayed[name], value)

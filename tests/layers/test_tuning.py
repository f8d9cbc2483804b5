import pytest
import torch
from torch import nn

from layers import LayerForm, autotune, compress_model, tuning
from layers.tuning import autotuned

FORMS = {
    "0": LayerForm(basis="cosine", harmonics=(2, 2)),
    "2": LayerForm(templates=4, transform="scalar"),
    "3": LayerForm(bits=8),
    "6": LayerForm(bits=4),
}


@pytest.fixture
def model(fill):
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    dense = fill(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    return compress_model(dense, FORMS)


@pytest.fixture
def timed(monkeypatch):
    """Times by form that the clock will say, and how often it was asked."""
    times, asked = {"dense": 1.0, "factored": 1.0, "two_stage": 1.0, "fused": 1.0}, []

    def form_ms(layer, x, form):
        asked.append((layer.shape.out_channels, form, tuple(x.shape)))
        return times[form]

    monkeypatch.setattr(tuning, "_form_ms", form_ms)
    monkeypatch.setattr(tuning, "_fastest_forms", {})
    return times, asked


def test_each_layer_gets_its_fastest_form(model, timed, normal):
    times, _ = timed
    times.update(factored=0.5, two_stage=2.0)
    assert autotune(model, normal(2, 3, 9, 9, dtype=torch.float32)) == {
        "0": "factored",
        "2": "dense",
        "3": "dense",
    }
    assert model[0].execution == "factored"


def test_a_gain_within_the_noise_is_none(model, timed, normal):
    times, _ = timed
    times.update(factored=0.97, two_stage=0.9)
    assert autotune(model, normal(2, 3, 9, 9, dtype=torch.float32))["0"] == "dense"
    assert model[2].execution == "two_stage"


def test_what_was_timed_is_known_for_equal_layers_and_inputs(model, timed, normal):
    _, asked = timed
    x = normal(2, 3, 9, 9, dtype=torch.float32)
    autotune(model, x)
    first = len(asked)
    assert {form for _, form, _ in asked} == {"dense", "factored", "two_stage", "fused"}
    autotune(model, x + 1)
    assert len(asked) == first
    autotune(model, x[:1])
    assert len(asked) == 2 * first


def test_outputs_modes_and_gradients_stay(model, normal, monkeypatch):
    monkeypatch.setattr(tuning, "_fastest_forms", {})
    x = normal(2, 3, 9, 9, dtype=torch.float32)
    model.train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    autotune(model, x)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    expected = model.eval()(x)
    for module, form in ((model[0], "factored"), (model[2], "fused")):
        module.execution = form
    assert torch.allclose(model(x), expected, atol=1e-4)
    assert model(x).requires_grad


def test_forms_come_back_after_a_block(model, timed, normal):
    times, _ = timed
    times.update(factored=0.1)
    with autotuned(model, normal(2, 3, 9, 9, dtype=torch.float32)):
        assert model[0].execution == "factored"
    assert model[0].execution == "dense"


def test_a_real_clock_runs_every_form(model, normal, monkeypatch):
    seen = []
    real = tuning._form_ms
    monkeypatch.setattr(tuning, "_fastest_forms", {})
    monkeypatch.setattr(tuning, "_form_ms", lambda layer, x, form: seen.append(form) or real(layer, x, form))
    chosen = autotune(model, normal(1, 3, 9, 9, dtype=torch.float32))
    assert sorted(seen) == ["dense", "dense", "dense", "factored", "fused", "two_stage"]
    assert all(chosen[name] in model.get_submodule(name).executions for name in chosen)

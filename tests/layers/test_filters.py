import copy
import pickle

import pytest
import torch
from torch import nn

from layers import CompressedConv2d, LayerForm
from tests.layers.oracle import oracle_filters

FORMS = [
    LayerForm(basis="chebyshev", harmonics=(2, 3)),
    LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter"),
    LayerForm(templates=3, groups=2, transform="scalar"),
    LayerForm(basis="cosine", harmonics=(2, 2), templates=3, groups=2, transform="scalar", bits=5, exponent_block=16),
]


@pytest.fixture
def conv(fill):
    return fill(nn.Conv2d(4, 8, 3, padding=1))


@pytest.fixture
def x(normal):
    return normal(2, 4, 9, 8, dtype=torch.float32)


@pytest.mark.parametrize("family", ["cosine", "chebyshev"])
def test_coefficients_that_round_to_zero_leave_finite_gains(family, fill):
    """A constant term of zero makes the middle tap of a two-harmonic template cancel to 1e-17."""
    form = LayerForm(basis=family, harmonics=(2, 2), templates=8, transform="scalar", bits=4, exponent_block=16)
    for _ in range(50):
        conv = fill(nn.Conv2d(1, 16, 3))
        layer = CompressedConv2d(conv, form)
        assert layer.gains.abs().max() < 1e10
        assert layer.filters().isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_filters_are_the_same_under_autocast(form, conv):
    layer = CompressedConv2d(conv, form)
    for mode in (True, False):
        expected = layer.train(mode).filters()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer.filters(), expected)


class TestFiltersKeptInEvaluation:
    @pytest.fixture
    def layer(self, conv):
        return CompressedConv2d(conv, FORMS[-1]).eval()

    @torch.no_grad()
    def test_they_are_built_once(self, layer):
        assert layer.filters() is layer.filters()
        assert layer(torch.zeros(1, 4, 5, 5)).isfinite().all()

    @torch.no_grad()
    @pytest.mark.parametrize("tensor", ["coefficients", "gains"])
    def test_a_change_in_place_is_seen(self, layer, tensor):
        before = layer.filters()
        getattr(layer, tensor).mul_(2.0)
        assert not torch.equal(layer.filters(), before)
        assert torch.allclose(layer.filters(), oracle_filters(layer).float(), atol=1e-5)

    @torch.no_grad()
    def test_loading_and_moving_are_seen(self, layer):
        before = layer.filters()
        layer.load_state_dict({name: 2 * value.float() for name, value in layer.state_dict().items()})
        assert not torch.equal(layer.filters(), before)
        assert layer.double().filters().dtype == torch.float64

    def test_an_optimizer_step_is_seen(self, layer, x):
        with torch.no_grad():
            before = layer.filters()
        layer(x).square().sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        with torch.no_grad():
            assert not torch.equal(layer.filters(), before)

    def test_gradients_and_training_build_them_anew_and_autocast_does_not(self, layer):
        assert layer.filters().requires_grad
        with torch.no_grad():
            kept = layer.filters()
            assert layer.train().filters() is not kept
            kept = layer.eval().filters()
            with torch.autocast("cpu", torch.bfloat16):
                assert layer.filters() is kept

    def test_inference_mode_leaves_nothing_that_later_use_cannot_take(self, layer, x):
        with torch.inference_mode():
            expected = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
        layer(x.clone().requires_grad_()).sum().backward()

    @torch.no_grad()
    def test_copies_and_pickles_do_not_carry_them(self, layer):
        filters = layer.filters()
        assert len(layer.cache) == 1
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert len(twin.cache) == 0
            assert torch.equal(twin.filters(), filters)
            assert layer.filters() is filters

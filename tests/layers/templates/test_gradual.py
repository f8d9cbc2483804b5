import pytest
import torch
from torch import nn

from layers import LayerForm, compress_layer, compress_model
from layers.pack import pack_state


@pytest.fixture(params=["scalar", "affine", "zero"])
def case(request, fill):
    """A layer of ten filters, three of them templates, whose others are still there; and the convolution it is of."""
    conv = fill(nn.Conv2d(4, 10, 3, padding=1, bias=True).double())
    form = LayerForm(templates=3, transform=request.param, groups=2, basis="cosine", harmonics=(3, 2))
    layer = compress_layer(conv, form).train()
    layer.defer_pruning(conv.weight.detach())
    return layer, conv


def there(layer, conv):
    """Which of the filters that are rebuilt are still the convolution's."""
    same = (layer.filters() - conv.weight).abs().amax((1, 2, 3)) < 1e-9
    return same[~layer.template_mask]


def test_at_first_all_pruned_filters_are_as_they_were(case):
    layer, conv = case
    assert there(layer, conv).all()


def test_in_evaluation_they_have_left(case):
    layer, conv = case
    expected = compress_layer(conv, layer.form).eval().filters()
    assert torch.equal(layer.eval().filters(), expected)
    assert not there(layer, conv).any()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_the_least_salient_leave_first(share, case):
    layer, conv = case
    layer.advance_pruning(share)
    norms = conv.weight.detach().flatten(1).norm(dim=1)[~layer.template_mask]
    gone = ~there(layer, conv)
    assert int(gone.sum()) == round(share * 7)
    assert not gone.any() or norms[gone].max() < norms[~gone].min()
    layer.advance_pruning(0.0)
    assert there(layer, conv).all()


def test_the_order_is_that_of_a_given_saliency(normal):
    conv, saliency = nn.Conv2d(2, 8, 3), normal(8)
    layer = compress_model(nn.Sequential(conv), {"0": LayerForm(templates=2, transform="zero")}, {"0": saliency})[0]
    layer.train().defer_pruning(conv.weight.detach(), saliency)
    layer.advance_pruning(0.5)
    left = saliency[~layer.template_mask][~there(layer, conv)].sort().values
    assert left.tolist() == saliency[~layer.template_mask].sort().values[:3].tolist()


def test_nothing_is_left_of_filters_that_have_left(case):
    layer, conv = case
    fresh = compress_layer(conv, layer.form)
    assert layer.state_dict().keys() - fresh.state_dict().keys() == {"residuals.values"}
    assert len(list(layer.parameters())) == len(list(fresh.parameters())) + 1
    layer.advance_pruning(1.0)
    assert layer.residuals is None
    assert layer.state_dict().keys() == fresh.state_dict().keys()
    assert torch.equal(layer.filters(), fresh.filters())
    layer.advance_pruning(1.0)


def test_residuals_and_templates_train_and_what_has_left_does_not(case, normal):
    layer, _ = case
    layer.advance_pruning(0.5)
    layer(normal(2, 4, 6, 6)).square().sum().backward()
    gradient = layer.residuals.values.grad.abs().amax((1, 2, 3))
    assert torch.equal(gradient > 0, layer.residuals.present)
    assert (layer.coefficients.grad != 0).any()


def test_every_execution_trains_the_same_network(case, normal):
    layer, _ = case
    x, expected = normal(2, 4, 6, 6), None
    for execution in layer.executions:
        layer.execution = execution
        found = layer(x)
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


def test_a_packed_file_holds_what_remains(case):
    layer, conv = case
    expected = pack_state(nn.Sequential(compress_layer(conv, layer.form)))
    found = pack_state(nn.Sequential(layer))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_dimensional_convolutions_too(fill):
    conv = fill(nn.Conv1d(3, 6, 5).double())
    layer = compress_layer(conv, LayerForm(templates=2, transform="scalar")).train()
    layer.defer_pruning(conv.weight.detach())
    assert torch.allclose(layer.filters()[~layer.template_mask, :, 0], conv.weight[~layer.template_mask])

import pytest
import torch
from torch import nn

from layers.integer.kernels import Addition, Product, fold_norm
from layers.integer.rounding import activation_codes, filter_codes, round_activation, round_filters, zero_point


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_is_rounded_as_torch_fakes_it_and_its_gradient_passes_where_it_is_not_saturated(
    generator, signed, dtype
):
    x = (5 * torch.randn(3, 4, 5, 6, generator=generator)).to(dtype).requires_grad_()
    scale, zero = 0.05, zero_point(signed)
    y = round_activation(x, torch.tensor([scale, zero]))
    oracle = torch.fake_quantize_per_tensor_affine(x.detach().float(), scale, zero, 0, 255)
    assert y.dtype == dtype
    assert torch.allclose(y.detach().float(), oracle, atol=1e-6, rtol=0 if dtype == torch.float32 else 2**-8)
    g = torch.randn(x.shape, generator=generator).to(dtype)
    y.backward(g)
    codes = (x.detach().float() / scale).round() + zero
    assert torch.equal(x.grad, torch.where((codes >= 0) & (codes <= 255), g, 0))
    assert ((codes < 0) | (codes > 255)).any()


def test_rounding_twice_changes_nothing(generator):
    x = torch.randn(1000, generator=generator)
    for grid in (torch.tensor([0.0123, 128.0]), torch.tensor([0.0789, 0.0])):
        once = round_activation(x, grid)
        assert torch.equal(round_activation(once, grid), once)
    filters = torch.randn(5, 3, 2, 2, generator=generator)
    assert torch.allclose(round_filters(round_filters(filters)), round_filters(filters), rtol=1e-6)


def test_a_filter_has_its_own_scale_and_its_gradient_is_that_of_the_identity(generator):
    filters = torch.randn(6, 3, 3, 3, generator=generator) * 10.0 ** torch.arange(-3, 3)[:, None, None, None]
    filters[2] = 0
    filters.requires_grad_()
    codes, scales = filter_codes(filters.detach())
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() == 127
    assert torch.equal(codes.flatten(1).abs().amax(1) == 127, torch.arange(6) != 2)
    rounded = round_filters(filters)
    error = (rounded - filters).detach().abs().flatten(1).amax(1)
    assert (error <= 0.501 * scales).all()
    assert torch.equal(rounded.detach(), codes * scales[:, None, None, None])
    g = torch.randn(filters.shape, generator=generator)
    rounded.backward(g)
    assert torch.equal(filters.grad, g)


def folded(product, grid):
    """The codes of a product in float64, before the last rounding; a slow oracle."""
    s, r = float(product.input_scale), float(grid[0])
    a, b = product.factor.double()[:, None, None], product.shift.double()[:, None, None]
    c = product.scales.double()[:, None, None]
    return (product.sums.double() * a * c * s + b) / r


def test_a_product_is_rounded_once_behind_its_norm(generator):
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.3, -0.7, 1e-4, 0.0]))
        norm.bias.normal_(generator=generator)
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
    sums = torch.randint(-30000, 30000, (3, 4, 5, 5), generator=generator).float()
    plain = Product(sums, torch.tensor(0.02), torch.rand(4, generator=generator) / 100, shift=torch.randn(4))
    vectors = norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach()
    product = fold_norm(plain, *vectors, eps=norm.eps)
    assert torch.allclose(folded(product, [1.0]).float(), norm(plain.values()), atol=1e-4, rtol=1e-4)
    for grid in (torch.tensor([0.05, 128.0]), torch.tensor([0.05, 0.0])):
        codes = product.rounded(grid) / grid[0]
        exact = folded(product, grid).clamp(float(-grid[1]), float(255 - grid[1]))
        assert (codes - exact).abs().max() < 0.5 + 0.03  # the bias has a step of its own
        assert torch.allclose(codes, codes.round(), atol=1e-4)


def test_a_bias_far_beyond_its_filter_keeps_its_value():
    sums = torch.tensor([[[[100.0]]]])
    product = Product(sums, torch.tensor(0.02), torch.tensor([0.01]), torch.tensor([1e-12]), torch.tensor([1.0]))
    assert product.rounded(torch.tensor([0.01, 0.0])).item() == pytest.approx(1.0)


def test_an_addition_is_that_of_the_dequantized_tensors(generator):
    grids = torch.tensor([0.03, 128.0]), torch.tensor([0.011, 0.0])
    one, other = (torch.randint(0, 256, (1000,), generator=generator).float() for _ in range(2))
    out = torch.tensor([0.041, 0.0])
    exact = (one - 128).double() * grids[0][0].double() + other.double() * grids[1][0].double()
    y = Addition((one, other), grids).rounded(out)
    assert ((y - exact.clamp(0, 255 * 0.041)).abs() <= 0.5001 * 0.041).all()
    assert torch.equal(activation_codes(y, out) * out[0], y)

"""What filters see, all of it and a share of its pixels, against PyTorch's own unfolding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import CompressedConv2d, CompressedLinear, LayerForm
from layers.calibration.inputs import seen_by_filters, sparse_steps


def unfolded(layer: CompressedConv2d, x: Tensor) -> Tensor:
    """(B, C K_y K_x, H_out, W_out)."""
    margins = layer.margins
    x = F.pad(x, margins, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    seen = F.unfold(x, layer.shape.kernel, layer.dilations, 0, layer.strides)
    reach = (layer.shape.kernel[0] - 1) * layer.dilations[0]
    return seen.unflatten(2, ((x.shape[2] - reach - 1) // layer.strides[0] + 1, -1))


@pytest.mark.parametrize("_", range(20))
def test_filters_see_what_unfolding_gives(_, rng, random_conv, images, normal):
    conv = random_conv()
    layer = CompressedConv2d(conv, LayerForm(bits=4))
    x = images(conv, 3)
    outputs = normal(*conv(x).shape)
    ((seen, wanted),) = seen_by_filters(layer, x, outputs)
    assert torch.equal(seen, unfolded(layer, x).transpose(0, 1).flatten(1))
    assert torch.equal(wanted, outputs.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("steps", [(1, 2), (2, 2), (3, 2), (4, 5)])
def test_every_pixel_is_seen_once_over_as_many_images(steps, rng, random_conv, images):
    """Whatever the pieces that images come in."""
    conv = random_conv()
    layer = CompressedConv2d(conv, LayerForm(bits=4))
    every = steps[0] * steps[1]
    x = images(conv, 1).expand(every, -1, -1, -1)
    places = torch.arange(conv(x[:1])[0, 0].numel(), dtype=x.dtype).view(conv(x[:1])[0, 0].shape)
    outputs = places.expand(every, conv.out_channels, *places.shape)
    cut, pairs = rng.randint(0, every), []
    for part in (slice(0, cut), slice(cut, None)):
        pairs += seen_by_filters(layer, x[part], outputs[part], steps, part.start)
    wanted = torch.cat([wanted[0] for _, wanted in pairs])
    assert wanted.sort().values.tolist() == list(range(places.numel()))
    seen = torch.cat([seen for seen, _ in pairs], 1)
    assert torch.equal(seen, unfolded(layer, x[:1])[0].flatten(1)[:, wanted.long()])


def test_rows_of_a_linear_layer_are_pixels(fill, normal):
    layer = CompressedLinear(fill(nn.Linear(5, 3)), LayerForm(bits=4))
    x, outputs = normal(4, 6, 5), normal(4, 6, 3)
    ((seen, wanted),) = seen_by_filters(layer, x, outputs)
    assert torch.equal(seen, x.flatten(0, 1).mT)
    assert torch.equal(wanted, outputs.flatten(0, 1).mT)
    ((seen, _),) = seen_by_filters(layer, x, outputs, (1, 3), 1)
    assert torch.equal(seen, x.flatten(0, 1)[1::3].mT)


@pytest.mark.parametrize("pixels", [1, 10, 100, 1000, 12345])
@pytest.mark.parametrize("enough", [1, 7, 100, 20000])
def test_about_enough_pixels_are_taken(pixels, enough):
    steps = sparse_steps(pixels, enough)
    taken = pixels / (steps[0] * steps[1])
    assert min(pixels, enough) * 0.65 <= taken <= max(enough * 1.5, 1)
    assert abs(steps[0] - steps[1]) <= max(1, steps[0])

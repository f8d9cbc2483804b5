import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from layers import LayerForm, LayerShape, layer_cost
from spaces import Network, build_model, load_weights
from spaces.tracing import trace


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def plain(model: nn.Module) -> int:
    """Parameters of convolutions and linear layers alone, as the papers count them."""
    layers = (module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return sum(layer_cost(LayerShape.from_module(layer), LayerForm()).parameters for layer in layers)


@pytest.mark.parametrize(
    ("name", "total", "without_norms"),
    [("resnet20", 269_722, 268_346), ("resnet32", 464_154, 461_882), ("vgg16", 14_724_042, 14_715_594)],
)
def test_parameters_are_the_published_ones(name, total, without_norms):
    with torch.device("meta"):
        model = build_model(name, classes=10, channels=3)
    assert trained(model) == total
    assert plain(model) == without_norms


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56])
def test_resnets_have_three_stages_of_16_32_and_64_channels(depth):
    n = (depth - 2) // 6
    model = build_model(f"resnet{depth}", classes=10, channels=1)
    convs = 9 * 16 + 9 * (2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert trained(model) == convs + norms + 65 * 10
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == depth - 1


@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 5)])
def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros(images, height, width):
    block = build_model("resnet8", classes=2, channels=3).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = images(2, 16, height, width)
    expected = torch.zeros(2, 32, 4, 3)
    expected[:, 8:24] = F.relu(x[:, :, ::2, ::2])
    assert torch.equal(block(x), expected)


def test_gradients_within_a_resnet_are_in_the_layout_of_its_images(images):
    """Passes over tensors in two layouts are many times as slow."""
    model = build_model("resnet8", classes=2, channels=3).to(memory_format=torch.channels_last)
    found = []
    for stage in (model.layer1, model.layer2):
        stage.register_full_backward_hook(lambda stage, sources, targets: found.append(targets[0]))
    model(images(2, 3, 16, 16).to(memory_format=torch.channels_last)).sum().backward()
    assert len(found) == 2
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in found)


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("resnet8", 8), ("vgg16", 32)])
def test_networks_give_logits_and_their_macs_are_those_that_pytorch_counts(name, size, fill, images):
    model = fill(build_model(name, classes=7, channels=3))
    x = images(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model(x)
    assert logits.shape == (1, 7)
    shapes = trace(model, (3, size, size)).shapes
    assert 2 * sum(layer_cost(shape, LayerForm()).macs for shape in shapes.values()) == counter.get_total_flops()


def test_published_macs_of_resnet18():
    network = Network.from_module(build_model("resnet18", classes=1000, channels=3), (3, 224, 224))
    assert sum(layer_cost(shape, LayerForm()).macs for shape in network.shapes.values()) == 1_814_073_344


def test_resnet20_recognises_real_images(data_folder):
    weights, table = data_folder / "resnet20-cifar10-jpeg.safetensors", data_folder / "cifar10-jpeg"
    if not weights.is_file() or not table.is_dir():
        pytest.skip(f"no ResNet-20 weights and CIFAR-10 images in {data_folder}")
    model = build_model("resnet20", classes=10, channels=3)
    load_weights(model, str(weights), name="resnet20")
    x, labels = _first_images(table / "test-00000-of-00001.parquet", 256)
    with torch.no_grad():
        top1 = (model.eval()(x).argmax(1) == labels).float().mean().item()
    assert top1 > 0.82  # 88.82 % over all 10,000


def _first_images(path, count: int) -> tuple[Tensor, Tensor]:
    import numpy as np
    import pyarrow.parquet
    from PIL import Image

    rows = next(pyarrow.parquet.ParquetFile(path).iter_batches(count)).to_pylist()
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2), torch.tensor([row["label"] for row in rows])

from typing import Any

import pytest
import torch
from torch import nn

from layers import CompressedConv2d, LayerForm, UsageError
from layers.templates.fused import FusedTemplates
from tests.layers.oracle import oracle_filters, rounded_inputs

SERIES = LayerForm(basis="chebyshev", harmonics=(2, 3))
TEMPLATES = LayerForm(templates=3, groups=2, transform="scalar")


PADDINGS: list[tuple[Any, str]] = [
    ("same", "zeros"),
    ("valid", "zeros"),
    (2, "zeros"),
    ((1, 3), "zeros"),
    ((1, 3), "reflect"),
    (2, "replicate"),
    ((2, 1), "circular"),
    ("same", "reflect"),
    ("same", "circular"),
    ("valid", "replicate"),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("padding", "mode"), PADDINGS)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 5), (2, 1)])
def test_whatever_conv2d_takes(padding, mode, kernel, random_conv, random_form, rng, normal):
    stride = 1 if padding == "same" else (rng.randint(1, 2), rng.randint(1, 2))
    conv = random_conv(kernel_size=kernel, padding=padding, padding_mode=mode, stride=stride, dtype=torch.float32)
    x = normal(2, conv.in_channels, 11, 10, dtype=torch.float32)
    assert torch.equal(CompressedConv2d(conv, LayerForm())(x), conv(x))
    form = random_form(conv)
    layer = CompressedConv2d(conv.double(), form)
    with torch.no_grad():
        conv.weight.copy_(oracle_filters(layer))
    x = x.double()
    expected = conv(rounded_inputs(x, form))
    executions = ["dense"]
    factored = form.basis is not None and form.templates is None and (conv.groups == 1 or not form.allocation)
    executions += ["factored"] if factored else []
    executions += ["pruned"] if form.transform == "zero" else []
    two_stages = form.templates is not None and conv.groups == 1 and form.transform != "zero"
    executions += ["two_stage"] if two_stages else []
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    reach = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    amid = (top, left) == (bottom, right) and [2 * top, 2 * left] == reach
    strides = conv.stride == (1, 1) or form.transform == "scalar"
    executions += ["fused"] if two_stages and conv.padding_mode == "zeros" and amid and strides else []
    leaves_out = conv.stride != (1, 1) or left + right < reach[1] or top + bottom < reach[0]
    executions += ["sampled"] if two_stages and form.transform == "scalar" and leaves_out else []
    assert list(layer.executions) == executions
    for execution in executions:
        layer.execution = execution
        assert torch.allclose(layer(x), expected, atol=1e-9)
        assert torch.allclose(layer(x[0]), expected[0], atol=1e-9)


@pytest.mark.parametrize(
    ("form", "groups", "execution"),
    [
        (LayerForm(), 1, "factored"),
        (LayerForm(), 1, "two_stage"),
        (SERIES, 1, "two_stage"),
        (TEMPLATES, 1, "factored"),
        (TEMPLATES, 1, "fused"),
        (LayerForm(templates=3, transform="scalar"), 4, "two_stage"),
        (LayerForm(templates=3, transform="zero"), 1, "two_stage"),
        (LayerForm(templates=3, transform="affine"), 1, "sampled"),
        (LayerForm(), 1, "fastest"),
    ],
)
def test_executions_that_a_form_does_not_have_are_refused(form, groups, execution):
    layer = CompressedConv2d(nn.Conv2d(4, 8, 3, groups=groups), form)
    layer.execution = execution
    message = rf"^execution \(='{execution}'\) must be one of {', '.join(layer.executions)} in the form LayerForm"
    with pytest.raises(UsageError, match=message):
        layer(torch.zeros(2, 4, 9, 8))


@torch.no_grad()
def test_what_the_single_pass_reads_is_built_once(fill, normal, monkeypatch):
    layer = CompressedConv2d(fill(nn.Conv2d(4, 8, 3, padding=1)), TEMPLATES).eval()
    layer.execution = "fused"
    x, built, build = normal(2, 4, 9, 8, dtype=torch.float32), [], FusedTemplates.from_operators
    monkeypatch.setattr(FusedTemplates, "from_operators", lambda *tensors: built.append(1) or build(*tensors))
    assert torch.equal(layer(x), layer(x))
    assert built == [1]
    layer.gains.mul_(2.0)
    layer(x)
    assert built == [1, 1]

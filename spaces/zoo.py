"""Networks for small inputs: the CIFAR ResNets of He et al. 2016 (section 4.2) and VGG16 with batch norm.

ResNets have three stages of n residual blocks with 16, 32 and 64 channels (depth 6 n + 2) and parameter-free
shortcuts (option A: every second pixel, new channels zero). VGG16 is Miles & Mikolajczyk's: 13 convolutions, one
linear layer. Inputs of at least 8 x 8 (ResNet) or 32 x 32 (VGG16) pixels fit, thanks to global pooling at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet", "CifarVGG16"]


class _Residual(nn.Module):
    def __init__(self, source: int, target: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, target - source
        self.conv1 = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(target)
        self.conv2 = nn.Conv2d(target, target, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(target)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.extra:
            x = F.avg_pool2d(x, 1, self.stride)  # the pixels that a slice takes, whose gradient is not channels last
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet of depth 6 n + 2; (B, channels, H, W) to (B, classes)."""

    def __init__(self, depth: int, *, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(source: int, target: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Residual(source, target, stride), *(_Residual(target, target, 1) for _ in range(blocks - 1)))


class CifarVGG16(nn.Module):
    """VGG16 with batch norm and a single linear layer; (B, channels, H, W) to (B, classes)."""

    widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
    """Channels of each convolution, 0 for a max-pooling."""

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in self.widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(torch.mean(self.features(x), (2, 3)))
        return logits

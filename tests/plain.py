"""The same CIFAR networks in plain torch, as a yardstick: no streams, no units."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cifar.vgg import PLANS, POOL_AFTER, WIDTHS


def conv_bn(i: int, o: int, k: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o)]


def conv_bn_relu(i: int, o: int, k: int, stride: int = 1) -> list[nn.Module]:
    return [*conv_bn(i, o, k, stride), nn.ReLU(inplace=True)]


def head(i: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10)]


def vgg19() -> nn.Module:
    modules, width = [], 3
    for index, (count, out) in enumerate(zip(PLANS[19], WIDTHS, strict=True)):
        for _ in range(count):
            modules += conv_bn_relu(width, out, 3)
            width = out
        modules += [nn.MaxPool2d(2)] * (index in POOL_AFTER)
    return nn.Sequential(*modules, *head(width))


class Bottleneck(nn.Module):
    def __init__(self, i: int, width: int, stride: int):
        super().__init__()
        o = 4 * width
        self.branch = nn.Sequential(
            *conv_bn_relu(i, width, 1),
            *conv_bn_relu(width, width, 3, stride),
            *conv_bn(width, o, 1),
        )
        self.shortcut = nn.Sequential(*conv_bn(i, o, 1, stride)) if i != o or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)


def resnet164() -> nn.Module:
    modules, width = conv_bn_relu(3, 16, 3), 16
    for stage, base in enumerate((16, 32, 64)):
        for block in range(18):
            modules.append(Bottleneck(width, base, 2 if stage and not block else 1))
            width = 4 * base
    return nn.Sequential(*modules, *head(width))


class Dense(nn.Module):
    def __init__(self, i: int, growth: int):
        super().__init__()
        self.branch = nn.Sequential(
            *conv_bn_relu(i, 4 * growth, 1), *conv_bn_relu(4 * growth, growth, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.branch(x)), 1)


def densenet100(growth: int = 40) -> nn.Module:
    width = 2 * growth
    modules = conv_bn_relu(3, width, 3)
    for block in range(3):
        for _ in range(16):
            modules.append(Dense(width, growth))
            width += growth
        if block < 2:
            modules += [*conv_bn_relu(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*modules, *head(width))

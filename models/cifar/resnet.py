"""ResNet for 32x32 images: depth 6n+2, basic blocks below 44, bottlenecks (x4) from 44 on."""

from collections import OrderedDict

from torch import nn

from models.common import conv_bn_relu, scale
from models.residual import BasicBlock, Bottleneck, stage
from nr.network.layers import Chain, Classifier, Network

BOTTLENECK_FROM = 44  # depths below use basic blocks; "110" is n = 18, which is ResNet-164
STEM = 16
STAGES = (16, 32, 64)


def resnet(num_classes: int = 10, depth: int = 110, width_mult: float = 1.0) -> Network:
    """ResNet of ``depth`` 6n+2: images [B, 3, 32, 32] to logits [B, S, classes].

    Raises ValueError for another depth.
    """
    if depth < 8 or (depth - 2) % 6:
        near = max(8, depth - (depth - 2) % 6)
        raise ValueError(
            f"depth {depth}: a CIFAR ResNet needs 6n+2, for example {near} or {near + 6}"
        )
    block = BasicBlock if depth < BOTTLENECK_FROM else Bottleneck
    width = scale(STEM, width_mult)
    parts: list[tuple[str, nn.Module]] = [
        ("stem", Chain(*conv_bn_relu(3, width, 3))),
    ]
    for index, base in enumerate(STAGES):
        blocks, width = stage(
            block, width, scale(base, width_mult), (depth - 2) // 6, stride=1 if index == 0 else 2
        )
        parts.append((f"stage{index + 1}", blocks))
    parts.append(("pool", nn.AdaptiveAvgPool2d(1)))
    return Network(Chain(OrderedDict(parts)), Classifier(width, num_classes), image_size=32)

"""VGG for 32x32 images: two poolings only, global average pooling before the classifier."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.common import conv_bn_relu, scale
from nr.network.layers import Chain, Classifier, Network

GAMMA = 0.5  # initial batch-norm scale of the VGG family
# Convolutions of width 64, 128, 256, then 512 before and after the second pooling.
PLANS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 2, 4), 19: (2, 2, 4, 2, 6)}
WIDTHS = (64, 128, 256, 512, 512)
POOL_AFTER = (1, 3)  # groups followed by a 2x2 max pooling


def vgg(depth: int, num_classes: int = 10, width_mult: float = 1.0) -> Network:
    """VGG of ``depth`` layers: images [B, 3, 32, 32] to logits [B, S, classes]."""
    groups: list[tuple[str, nn.Module]] = []
    width = 3
    for index, (count, base) in enumerate(zip(PLANS[depth], WIDTHS, strict=True)):
        group = []
        for _ in range(count):
            group += conv_bn_relu(width, scale(base, width_mult), 3, gamma=GAMMA)
            width = scale(base, width_mult)
        groups.append((f"group{index + 1}", Chain(*group)))
        if index in POOL_AFTER:
            groups.append((f"pool{index + 1}", nn.MaxPool2d(2, 2)))
    groups.append(("pool", nn.AdaptiveAvgPool2d(1)))
    return Network(Chain(OrderedDict(groups)), Classifier(width, num_classes), image_size=32)


vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = (partial(vgg, depth) for depth in PLANS)

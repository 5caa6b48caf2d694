"""DenseNet-BC for 224x224 images, conv-BN-ReLU order, halving transitions."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.common import conv_bn_relu, scale
from models.dense import dense_block, transition
from nr.network.layers import Chain, Classifier, Network

PLANS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32)}  # layers in each dense block
STEM = 64
GROWTH_RATE = 32
COMPRESSION_RATE = 2


def densenet(
    depth: int, num_classes: int = 1000, width_mult: float = 1.0, dropout: float = 0.0
) -> Network:
    """DenseNet of ``depth`` layers: images [B, 3, 224, 224] to logits [B, S, classes]."""
    width = scale(STEM, width_mult)
    stem = Chain(*conv_bn_relu(3, width, 7, stride=2), nn.MaxPool2d(3, 2, 1))
    parts: list[tuple[str, nn.Module]] = [("stem", stem)]
    for index, count in enumerate(PLANS[depth], start=1):
        block, width = dense_block(width, scale(GROWTH_RATE, width_mult), count, dropout)
        parts.append((f"block{index}", block))
        if index < len(PLANS[depth]):
            chain, width = transition(width, COMPRESSION_RATE, dropout)
            parts.append((f"transition{index}", chain))
    parts.append(("pool", nn.AdaptiveAvgPool2d(1)))
    return Network(Chain(OrderedDict(parts)), Classifier(width, num_classes), image_size=224)


densenet121_nr, densenet169_nr = (partial(densenet, depth) for depth in PLANS)

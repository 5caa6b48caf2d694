"""DenseNet-BC for 32x32 images: depth 6n+4, conv-BN-ReLU order."""

from collections import OrderedDict

from torch import nn

from models.common import conv_bn_relu, scale
from models.dense import dense_block, transition
from nr.network.layers import Chain, Classifier, Network

BLOCKS = 3


def densenet(
    num_classes: int = 10,
    depth: int = 100,
    growth_rate: int = 12,
    compression_rate: float = 2,
    dropout: float = 0.0,
    width_mult: float = 1.0,
) -> Network:
    """DenseNet of ``depth`` 6n+4: images [B, 3, 32, 32] to logits [B, S, classes].

    ``growth_rate``: channels that a dense layer adds; ``compression_rate`` θ: a transition keeps
    floor(C/θ) channels. Raises ValueError for another depth.
    """
    if depth < 10 or (depth - 4) % 6:
        near = max(10, depth - (depth - 4) % 6)
        raise ValueError(
            f"depth {depth}: a CIFAR DenseNet needs 6n+4, for example {near} or {near + 6}"
        )
    growth = scale(growth_rate, width_mult)
    width = 2 * growth
    parts: list[tuple[str, nn.Module]] = [("stem", Chain(*conv_bn_relu(3, width, 3)))]
    for index in range(1, BLOCKS + 1):
        block, width = dense_block(width, growth, (depth - 4) // 6, dropout)
        parts.append((f"block{index}", block))
        if index < BLOCKS:
            chain, width = transition(width, compression_rate, dropout)
            parts.append((f"transition{index}", chain))
    parts.append(("pool", nn.AdaptiveAvgPool2d(1)))
    return Network(Chain(OrderedDict(parts)), Classifier(width, num_classes), image_size=32)

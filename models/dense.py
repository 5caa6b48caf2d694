"""Dense blocks and transitions, for both image sizes."""

import math

from torch import nn

from models.common import conv_bn_relu
from nr.network.layers import Chain, Concat

BOTTLENECK = 4  # the 1x1 of a dense layer is this many growth rates wide


def dense_block(
    in_channels: int, growth_rate: int, count: int, dropout: float
) -> tuple[Chain, int]:
    """``count`` dense layers (1x1 to 4k, 3x3 to k, concat), and their output width."""
    layers = []
    for _ in range(count):
        branch = Chain(
            *conv_bn_relu(in_channels, BOTTLENECK * growth_rate, 1, dropout=dropout),
            *conv_bn_relu(BOTTLENECK * growth_rate, growth_rate, 3, dropout=dropout),
        )
        layers.append(Concat(branch))
        in_channels += growth_rate
    return Chain(*layers), in_channels


def transition(in_channels: int, compression_rate: float, dropout: float) -> tuple[Chain, int]:
    """1x1 to floor(C / compression_rate), 2x2 average pooling; returns it and its width."""
    out_channels = max(1, math.floor(in_channels / compression_rate))
    unit = conv_bn_relu(in_channels, out_channels, 1, dropout=dropout)
    return Chain(*unit, nn.AvgPool2d(2, 2)), out_channels

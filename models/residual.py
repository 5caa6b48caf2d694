"""Residual blocks and stages, for both image sizes (stride in the 3x3, as in torchvision)."""

from models.common import conv_bn_relu
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Residual


class BasicBlock:
    """3x3, 3x3; as wide as the stage."""

    expansion = 1

    @staticmethod
    def branch(in_channels: int, width: int, stride: int) -> Chain:
        return Chain(
            *conv_bn_relu(in_channels, width, 3, stride),
            ConvBN(width, width, 3),
        )


class Bottleneck:
    """1x1, 3x3, 1x1; the last one four times as wide."""

    expansion = 4

    @staticmethod
    def branch(in_channels: int, width: int, stride: int) -> Chain:
        return Chain(
            *conv_bn_relu(in_channels, width, 1),
            *conv_bn_relu(width, width, 3, stride),
            ConvBN(width, width * Bottleneck.expansion, 1),
        )


Block = type[BasicBlock] | type[Bottleneck]


def stage(block: Block, in_channels: int, width: int, count: int, stride: int) -> tuple[Chain, int]:
    """``count`` blocks, the first with ``stride``; returns them and their output width."""
    out_channels = width * block.expansion
    blocks = []
    for index in range(count):
        stride = stride if index == 0 else 1
        shortcut = None
        if stride != 1 or in_channels != out_channels:
            shortcut = ConvBN(in_channels, out_channels, 1, stride)
        blocks.append(Residual(block.branch(in_channels, width, stride), shortcut))
        in_channels = out_channels
    return Chain(*blocks), out_channels

"""What the families share."""

from torch import nn

from nr.network.convolutions import ConvBN


def scale(width: int, width_mult: float) -> int:
    """A layer width under --width-mult, never below one channel."""
    return max(1, round(width * width_mult))


def conv_bn_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    gamma: float = 1.0,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """The modules of one conv-BN-ReLU, with dropout after it where asked."""
    unit = ConvBN(in_channels, out_channels, kernel_size, stride, gamma=gamma)
    modules: list[nn.Module] = [unit, nn.ReLU(inplace=True)]
    return modules + [nn.Dropout(dropout)] * (dropout > 0)

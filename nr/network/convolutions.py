"""Convolutions and what follows them: the units that are measured and rebuilt."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nr.network.norms import BatchNorm, Bias, Follower, Layers
from nr.network.units import FORMS, Streams, Unit
from nr.network.windows import Window, pair, window, windows_in

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """What describes a convolution and its norm, beside channels, window and stride."""

    padding: Window | None
    dilation: Window
    transposed: bool
    output_padding: Window
    gamma: float
    eps: float
    momentum: float | None


class Windowed(Unit):
    """A unit whose outputs each see a window of the input's pixels."""

    def describe(
        self,
        kernel_size: Window,
        stride: Window,
        padding: Window | None = None,
        dilation: Window = 1,
        transposed: bool = False,
        output_padding: Window = 0,
        gamma: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        """Keep everything that does not depend on the channels."""
        self.kernel_size = window("kernel_size", kernel_size, 1)
        self.stride = window("stride", stride, 1)
        self.dilation = window("dilation", dilation, 1)
        self.padding = _same(self) if padding is None else window("padding", padding, 0)
        self.output_padding = window("output_padding", output_padding, 0)
        self.transposed = transposed
        # Pixels between those that are read; the convolution strides over the rest.
        pointwise = self.kernel_size == 1 and self.padding == 0 and not transposed
        self.step = self.stride if pointwise else 1
        self.gamma, self.eps, self.momentum = gamma, eps, momentum

    @property
    def taps(self) -> int:
        """Weights of one output for one input channel."""
        return math.prod(pair(self.kernel_size))

    def options(self) -> dict[str, Any]:
        """The arguments of torch's convolution, without the channels."""
        found = {
            "kernel_size": self.kernel_size,
            "stride": self.stride if self.step == 1 else 1,
            "padding": self.padding,
            "dilation": self.dilation,
            "bias": False,
        }
        return found | {"output_padding": self.output_padding} if self.transposed else found

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of its output, from that of its input."""
        windows = (self.kernel_size, self.stride, self.padding, self.dilation)
        if not self.transposed:
            return windows_in(size, *windows)
        sides = zip(size, *map(pair, (*windows, self.output_padding)), strict=True)
        h, w = ((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sides)
        return h, w


class ConvBN(Windowed):
    """A convolution without bias and its batch norm: the unit that is measured and rebuilt.

    - ``kernel_size``, ``stride``, ``padding``, ``dilation``: an int, or (height, width). With
      ``padding=None`` the size stays at stride 1.
    - ``groups``: as of nn.Conv2d. A group lives, dies and grows as a whole; groups are never
      connected.
    - ``transposed``: an nn.ConvTranspose2d, with ``output_padding``; its groups are one, or one for
      each channel.
    - ``gamma``: the batch-norm scale at first. ``eps``, ``momentum``: the batch norm's.

    Raises ValueError for a window or a number of channels that makes no sense, and for groups that
    do not divide the channels.

    A 1x1 convolution of stride s takes every s-th pixel and convolves these with stride 1. The
    numbers are the same, but the strided form's weight gradient is wrong, or crashes, on CPUs in
    channels-last memory with few input channels (uxlfoundation/oneDNN issue 6035).
    """

    # Of what nr.convert was given: the name of its batch norm, and whether it is an nn.Linear.
    norm_name: str | None = None
    linear = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Window,
        stride: Window = 1,
        *,
        padding: Window | None = None,
        dilation: Window = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: Window = 0,
        gamma: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        super().__init__()
        self.describe(
            kernel_size, stride, padding, dilation, transposed, output_padding, gamma, eps, momentum
        )
        self.group = _group(in_channels, out_channels, groups)
        if transposed and self.group not in (None, (1, 1)):
            raise ValueError(f"ConvBN: transposed with groups {groups}: 1, or one a channel")
        self.build("plain", (in_channels,), (out_channels,))

    @classmethod
    def formed(
        cls,
        form: str,
        in_channels: tuple[int, ...],
        out_channels: tuple[int, ...],
        group: tuple[int, int] | None = None,
        *,
        kernel_size: Window,
        stride: Window = 1,
        **options: "Unpack[Options]",
    ) -> "ConvBN":
        """A unit of any form, with one width for each stream; ``options``: as of ``describe``."""
        unit = cls.__new__(cls)
        nn.Module.__init__(unit)
        unit.group = group
        unit.describe(kernel_size, stride, **options)
        unit.build(form, in_channels, out_channels)
        return unit

    def make(self, fresh: bool) -> None:
        cls = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        ins, outs = self.in_channels, self.out_channels
        self.convs = Layers(
            cls(
                sum(ins[i] for i in reads),
                sum(outs[o] for o in writes),
                groups=self.groups(sum(ins[i] for i in reads)),
                **self.options(),
            )
            for reads, writes in FORMS[self.form]
        )
        self.make_norms(fresh)
        self.reset_parameters()

    def fresh_norm(self, width: int) -> Follower:
        return BatchNorm(width, eps=self.eps, momentum=self.momentum)

    def groups(self, in_channels: int) -> int:
        """The number of groups for so many input channels."""
        return 1 if self.group is None else in_channels // self.group[0]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights N(0, √(2/(k²·out))), cross blocks 0; γ as given, or 0.5 if rejuvenated; β 0.

        Nothing on the meta device, where torch would compute in Python although there are no
        values.
        """
        if self.convs[0].weight.is_meta:
            return
        std = math.sqrt(2 / (self.taps * sum(self.out_channels)))
        for i, o, block in self.blocks():
            block.normal_(0, std) if i == o else block.zero_()
        self.reset_norms()

    def blocks(self, weights: Iterable[Tensor] | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (input stream, output stream, weight [o, i, k, k]) of every block that exists.

        With groups, i is the channels of one group. The weights are views without gradient: to
        write to them changes the network.
        """
        weights = [conv.weight.detach() for conv in self.convs] if weights is None else weights
        for weight, (reads, writes) in zip(weights, FORMS[self.form], strict=True):
            if self.transposed and self.group is None:
                weight = weight.transpose(0, 1)
            rows = weight.split([self.out_channels[o] for o in writes], dim=0)
            for o, row in zip(writes, rows, strict=True):
                grouped = self.group is not None  # then each convolution reads one stream
                columns = row.split(
                    [row.shape[1] if grouped else self.in_channels[i] for i in reads], dim=1
                )
                for i, block in zip(reads, columns, strict=True):
                    yield i, o, block

    def forward(self, x: Streams) -> Streams:
        if self.step != 1:
            # A pooling of single pixels: one operation each way, where slices take four.
            x = tuple(F.avg_pool2d(stream, 1, self.step) for stream in x)
        if self.form == "attention":
            survived, to_rejuvenated = self.convs[0](x[0]).split(self.out_channels, dim=1)
            to_survived, rejuvenated = self.convs[1](x[1]).split(self.out_channels, dim=1)
            x = (gate(survived, to_survived), gate(rejuvenated, to_rejuvenated))
        elif self.form == "full":
            survived, rejuvenated = self.convs[0](torch.cat(x, dim=1)).split(
                self.out_channels, dim=1
            )
            x = (dense(survived), dense(rejuvenated))
        else:
            x = tuple(conv(stream) for conv, stream in zip(self.convs, x, strict=True))
        return tuple(norm(stream) for norm, stream in zip(self.norms, x, strict=True))


class Conv(ConvBN):
    """A convolution without batch norm, with a bias or (``bias=False``) without.

    All its outputs live, as in a sum, unless only an nr.Norm reads them. It stands for hidden
    linear layers: for the first, as a window over the whole map without padding, instead of a
    flatten and an nn.Linear; for the next ones, as 1x1. Other arguments are those of ConvBN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Window,
        stride: Window = 1,
        *,
        groups: int = 1,
        bias: bool = True,
        **options: "Unpack[Options]",
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, **options)
        if not bias:
            self.drop_bias()

    def drop_bias(self) -> None:
        self.norms = Layers(Bias(width, bias=False) for width in self.out_channels)

    def fresh_norm(self, width: int) -> Follower:
        return Bias(width)


def _group(in_channels: int, out_channels: int, groups: int) -> tuple[int, int] | None:
    """The (input, output) channels of one group; None if there is only one group."""
    if not all(type(width) is int and width > 0 for width in (in_channels, out_channels)):
        raise ValueError(f"ConvBN: {in_channels!r} -> {out_channels!r} channels: ints from 1 on")
    if type(groups) is not int or groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"ConvBN: groups {groups!r}: {in_channels} and {out_channels} channels do not divide"
            " into so many"
        )
    return None if groups == 1 else (in_channels // groups, out_channels // groups)


def _same(unit: Windowed) -> Window:
    """The padding with which the size stays at stride 1."""
    sides = zip(pair(unit.kernel_size), pair(unit.dilation), strict=True)
    return window("padding", tuple(d * (k // 2) for k, d in sides), 0)


@fx.wrap  # what it asks of its tensors has no answer while torch.fx traces
def gate(own: Tensor, cross: Tensor) -> Tensor:
    """Cross attention: own + 2σ(own)·cross (spec section 6), both [B, C, H, W]."""
    if own.stride(1) == 1:  # channels last; in the other order slices are as fast here
        own, cross = dense(own), dense(cross)
    return torch.addcmul(own, torch.sigmoid(own), cross, value=2)


@fx.wrap
def dense(part: Tensor) -> Tensor:
    """A slice of the channels of [B, C, H, W]; on a CPU as a copy.

    A CPU takes up to eight times as long for batch norm on a slice.
    """
    if part.device.type != "cpu":
        return part
    last = part.stride(1) == 1
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

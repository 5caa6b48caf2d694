"""The units that are measured and rebuilt: a convolution and what follows it.

An activation is a tuple of streams: ``(all,)`` before rejuvenation, ``(survived, rejuvenated)``
after it. Shape letters: B images, C channels, H and W spatial size, k kernel size, o and i output
and input channels, S streams.
"""

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nr.norms import BatchNorm, Bias, norm_like, take_after

Streams = tuple[Tensor, ...]

# The convolutions of a ConvBN in each form: (input streams read, output streams written).
# Stream 0 is everything or the survived channels, stream 1 the rejuvenated ones.
FORMS: dict[str, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = {
    "plain": (((0,), (0,)),),
    "removed": (((0,), (0,)), ((1,), (1,))),
    "attention": (((0,), (0, 1)), ((1,), (0, 1))),
    "full": (((0, 1), (0, 1)),),
}
CROSS = ("removed", "attention", "full")  # the forms of a rejuvenated network
PRUNED = "none"  # in the place of one of CROSS: no rejuvenated channels, so no second stream
REJUVENATED_GAMMA = 0.5  # γ of a rejuvenated channel at birth


class ConvBN(nn.Module):
    """A convolution without bias and its batch norm: the unit that is measured and rebuilt.

    ``padding``: None keeps the size at stride 1. ``groups``: as of nn.Conv2d; a group lives, dies
    and grows as a whole, and no connection leads from one to another. ``gamma``: the initial
    batch-norm scale; ``eps`` and ``momentum`` are the batch norm's. Raises ValueError for a window
    that is not square, for channels that are no number, and for groups that do not divide them.

    A 1x1 convolution of stride s takes every s-th pixel and convolves them with stride 1: the same
    numbers, where the strided form's weight gradient is wrong, or crashes, on CPUs in channels-last
    memory with few input channels (uxlfoundation/oneDNN issue 6035).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        gamma: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        super().__init__()
        self._set_window(kernel_size, stride, padding)
        self.group = _group(in_channels, out_channels, groups)
        self.gamma, self.eps, self.momentum = gamma, eps, momentum
        self.build("plain", (in_channels,), (out_channels,))

    @classmethod
    def formed(
        cls,
        form: str,
        in_channels: tuple[int, ...],
        out_channels: tuple[int, ...],
        window: tuple[int, int, int],
        group: tuple[int, int] | None = None,
        *,
        gamma: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> "ConvBN":
        """A unit of any form, one width a stream; ``window``: kernel size, stride and padding."""
        unit = cls.__new__(cls)
        nn.Module.__init__(unit)
        unit._set_window(*window)
        unit.group, unit.gamma, unit.eps, unit.momentum = group, gamma, eps, momentum
        unit.build(form, in_channels, out_channels)
        return unit

    def _set_window(self, kernel_size: int, stride: int, padding: int | None) -> None:
        self.kernel_size = _square("kernel_size", kernel_size, 1)
        self.stride = _square("stride", stride, 1)
        padding = self.kernel_size // 2 if padding is None else padding
        self.padding = _square("padding", padding, 0)
        # Pixels between those that are read; the convolution strides over the rest.
        self.step = self.stride if self.kernel_size == 1 and self.padding == 0 else 1

    def build(self, form: str, in_channels: tuple[int, ...], out_channels: tuple[int, ...]) -> None:
        """Replace the layers by fresh ones of this form and these widths (one width a stream).

        They have the class, precision, device and mode of the layers that they replace.
        """
        old = self._modules.copy()
        self.form, self.in_channels, self.out_channels = form, in_channels, out_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(
                sum(in_channels[i] for i in reads),
                sum(out_channels[o] for o in writes),
                self.kernel_size,
                self.stride // self.step,
                self.padding,
                groups=self.groups(sum(in_channels[i] for i in reads)),
                bias=False,
            )
            for reads, writes in FORMS[form]
        )
        self.norms = nn.ModuleList(
            norm_like(old["norms"][0], width) if old else self.fresh_norm(width)
            for width in out_channels
        )
        self.reset_parameters()
        for name, layers in old.items():
            for layer in self._modules[name].train(layers.training):
                take_after(layer, layers[0])

    def fresh_norm(self, width: int) -> nn.Module:
        return BatchNorm(width, eps=self.eps, momentum=self.momentum)

    def spread(self, inputs: Tensor) -> Tensor:
        """A value for each input channel [i], as a factor for a weight: [1 or o, i, 1, 1]."""
        rows = inputs[None]
        if self.group is not None:
            rows = inputs.view(-1, self.group[0]).repeat_interleave(self.group[1], dim=0)
        return rows[:, :, None, None]

    def groups(self, in_channels: int) -> int:
        """The groups of so many input channels."""
        return 1 if self.group is None else in_channels // self.group[0]

    def remade(
        self, form: str, in_channels: tuple[int, ...], out_channels: tuple[int, ...]
    ) -> "ConvBN":
        """A fresh unit like this one with another form and other widths; this one stays."""
        unit = copy.copy(self)
        unit._modules = self._modules.copy()
        unit.build(form, in_channels, out_channels)
        return unit

    def adopt(self, unit: "ConvBN") -> None:
        """Become what ``remade`` gave."""
        for name in ("form", "in_channels", "out_channels", "convs", "norms"):
            setattr(self, name, getattr(unit, name))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights N(0, √(2/(k²·out))), cross blocks 0; γ as given, 0.5 when rejuvenated; β 0.

        On the meta device nothing: there torch computes in Python even what has no values.
        """
        if self.convs[0].weight.is_meta:
            return
        std = math.sqrt(2 / (self.kernel_size**2 * sum(self.out_channels)))
        for i, o, block in self.blocks():
            block.normal_(0, std) if i == o else block.zero_()
        for norm, gamma in zip(self.norms, (self.gamma, REJUVENATED_GAMMA), strict=False):
            if not isinstance(norm, Bias):  # which is born 0
                norm.reset_parameters()
                norm.weight.fill_(gamma)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (input stream, output stream, weight [o, i, k, k]) of every block that exists.

        With groups i counts the channels of one. The weights are views without gradient: writing
        to them changes the network.
        """
        for conv, (reads, writes) in zip(self.convs, FORMS[self.form], strict=True):
            rows = conv.weight.detach().split([self.out_channels[o] for o in writes], dim=0)
            for o, row in zip(writes, rows, strict=True):
                grouped = self.group is not None  # then each convolution reads one stream
                columns = row.split(
                    [row.shape[1] if grouped else self.in_channels[i] for i in reads], dim=1
                )
                for i, block in zip(reads, columns, strict=True):
                    yield i, o, block

    def forward(self, x: Streams) -> Streams:
        if self.step > 1:
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

    def extra_repr(self) -> str:
        return f"{self.form}, {self.in_channels} -> {self.out_channels}"


class Conv(ConvBN):
    """A convolution with a bias and no batch norm: all its outputs count as live, as in a sum.

    For hidden linear layers: the first, as a window over the whole map without padding, takes the
    place of a flatten and an nn.Linear; the next ones are 1x1. ``bias``: False for none. The other
    arguments are those of ConvBN.
    """

    def __init__(self, *arguments, bias: bool = True, **options):
        super().__init__(*arguments, **options)
        if not bias:
            self.drop_bias()

    def drop_bias(self) -> None:
        self.norms = nn.ModuleList(Bias(width, bias=False) for width in self.out_channels)

    def fresh_norm(self, width: int) -> nn.Module:
        return Bias(width)


def _group(in_channels: int, out_channels: int, groups: int) -> tuple[int, int] | None:
    """(input, output) channels of one group, None where there is only one group."""
    if not all(type(width) is int and width > 0 for width in (in_channels, out_channels)):
        raise ValueError(f"ConvBN: {in_channels!r} -> {out_channels!r} channels: ints from 1 on")
    if type(groups) is not int or groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"ConvBN: groups {groups!r}: {in_channels} and {out_channels} channels do not divide"
            " into so many"
        )
    return None if groups == 1 else (in_channels // groups, out_channels // groups)


def _square(what: str, value: object, least: int) -> int:
    """A window's size as one int. Raises ValueError for anything but an int or a square pair."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or pair[0] != pair[1] or type(pair[0]) is not int or pair[0] < least:
        raise ValueError(f"ConvBN: {what} {value!r}: a square window is needed, one int >= {least}")
    return pair[0]


@fx.wrap  # what it asks of its tensors has no answer while torch.fx traces
def gate(own: Tensor, cross: Tensor) -> Tensor:
    """Cross attention: own + 2σ(own)·cross (spec section 6), both [B, C, H, W]."""
    if own.stride(1) == 1:  # channels last; in the other order slices are as fast here
        own, cross = dense(own), dense(cross)
    return torch.addcmul(own, torch.sigmoid(own), cross, value=2)


@fx.wrap
def dense(part: Tensor) -> Tensor:
    """A slice of the channels of [B, C, H, W], copied on a CPU.

    What follows, batch norm above all, takes a CPU up to eight times as long on a slice.
    """
    if part.device.type != "cpu":
        return part
    last = part.stride(1) == 1
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

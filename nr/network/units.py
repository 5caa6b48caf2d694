"""The units that are measured and rebuilt: a convolution and what follows it.

An activation is a tuple of streams: ``(all,)`` before rejuvenation, ``(survived, rejuvenated)``
after it. Shape letters: B images, C channels, H and W spatial size, k kernel size, o and i output
and input channels, S streams.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from nr.network.norms import BatchNorm, Bias, Follower, Layers, Scale, norm_like, take_after

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
U = TypeVar("U", bound="Unit")


class Streamed:
    """Marks modules that map streams to streams; other modules get one stream at a time."""


class Unit(Streamed, nn.Module):
    """Makes channels of its own, and can be made anew with other widths.

    ``norms``: one for each stream, with its scales or biases. ``gamma``: the scales at first.
    ``convs``: the convolutions, if it has any. ``group``: (input, output) channels of one group.
    """

    form: str
    in_channels: tuple[int, ...]
    out_channels: tuple[int, ...]
    gamma: float
    norms: "Layers[Follower]"
    convs: "Layers[nn.Conv2d | nn.ConvTranspose2d]"
    group: tuple[int, int] | None = None
    transposed = False

    @property
    def taps(self) -> int:
        """Weights of one output for one input channel."""
        return 0

    def build(self, form: str, in_channels: tuple[int, ...], out_channels: tuple[int, ...]) -> None:
        """Replace the layers by fresh ones of this form and these widths, one for each stream.

        They have the class, precision, device and mode of those that they replace.
        """
        old = {n: child for n, child in self.named_children() if isinstance(child, nn.ModuleList)}
        self.form, self.in_channels, self.out_channels = form, in_channels, out_channels
        self.make(fresh=not old)
        for name, layers in old.items():
            for layer in getattr(self, name).train(layers.training):
                take_after(layer, layers[0])

    def make(self, fresh: bool) -> None:
        """Make layers of the present form and widths; ``fresh``: the first ones."""
        raise NotImplementedError

    def make_norms(self, fresh: bool) -> None:
        """Make norms of the class of those before; ``fresh``: the first ones."""
        self.norms = Layers(
            self.fresh_norm(width) if fresh else norm_like(self.norms[0], width)
            for width in self.out_channels
        )

    def fresh_norm(self, width: int) -> Follower:
        """The norm of a stream of this width."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_norms(self) -> None:
        """γ as given, or as rejuvenated channels have it at birth; β and biases 0.

        Scales without a norm are born as 1 in both streams: nothing behind them makes up for a
        half, and the output of many layers would fade.
        """
        for norm, gamma in zip(self.norms, (self.gamma, REJUVENATED_GAMMA), strict=False):
            if not isinstance(norm, Bias | Scale):
                norm.reset_parameters()
                norm.weight.fill_(gamma)

    def blocks(self, weights: Iterable[Tensor] | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (input stream, output stream, weight [o, i, h, w]) of every block that exists.

        ``weights``: tensors that are cut instead, one for each convolution, shaped like its
        weights.
        """
        return iter(())

    def remade(
        self: U, form: str, in_channels: tuple[int, ...], out_channels: tuple[int, ...]
    ) -> U:
        """A fresh unit like this one, with another form and other widths."""
        unit = copy.copy(self)
        unit._modules = self._modules.copy()
        unit.build(form, in_channels, out_channels)
        return unit

    def adopt(self, unit: "Unit") -> None:
        """Take over what ``remade`` gave."""
        self.form, self.in_channels, self.out_channels = (
            unit.form,
            unit.in_channels,
            unit.out_channels,
        )
        for name, layers in unit._modules.items():
            setattr(self, name, layers)

    @property
    def scales(self) -> list[Tensor]:
        """γ [C] of each stream; none if the unit has only biases."""
        return [norm.weight for norm in self.norms if not isinstance(norm, Bias)]

    @property
    def batch_norms(self) -> list[BatchNorm]:
        """The batch norm of each stream, ours or torch's; empty if there is none."""
        return [norm for norm in self.norms if not isinstance(norm, Bias | Scale)]

    @property
    def biases(self) -> list[Bias]:
        """The bias of each stream; empty if there are norms or scales."""
        return [norm for norm in self.norms if isinstance(norm, Bias)]

    def spread(self, inputs: Tensor) -> Tensor:
        """A value for each input channel [i] as a factor of a weight: [1 or o, i, 1, 1]."""
        rows = inputs[None]
        if self.group is not None:
            rows = inputs.view(-1, self.group[0]).repeat_interleave(self.group[1], dim=0)
        return rows[:, :, None, None]

    def extra_repr(self) -> str:
        return f"{self.form}, {self.in_channels} -> {self.out_channels}"


class Norm(Unit):
    """A batch norm before a convolution, or a scale alone: a γ for each pair (reader, channel).

    ``gamma``, ``eps``, ``momentum``: see nr.ConvBN. With ``eps`` None each channel is multiplied by
    its γ and nothing else.
    """

    def __init__(
        self,
        channels: int,
        gamma: float = 1.0,
        eps: float | None = 1e-5,
        momentum: float | None = 0.1,
    ):
        super().__init__()
        self.gamma, self.eps, self.momentum = gamma, eps, momentum
        self.build("plain", (channels,), (channels,))

    def make(self, fresh: bool) -> None:
        self.make_norms(fresh)
        self.reset_norms()

    def fresh_norm(self, width: int) -> Follower:
        if self.eps is None:
            return Scale(width)
        return BatchNorm(width, eps=self.eps, momentum=self.momentum)

    def forward(self, x: Streams) -> Streams:
        return tuple(norm(stream) for norm, stream in zip(self.norms, x, strict=True))

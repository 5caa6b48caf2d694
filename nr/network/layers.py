"""What holds the units of a network together, and the classifier.

An activation is a tuple of streams: ``(all,)`` before rejuvenation, ``(survived, rejuvenated)``
after it. Shape letters: B images, C channels, H and W spatial size, k kernel size, o and i output
and input channels, S streams.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nr.network.norms import Layers, take_after
from nr.network.units import Streamed, Streams
from nr.network.windows import windows_in

ACTIVATIONS = ("relu", None)  # of a sum
# What a network gives: logits, or those of several heads in dicts and tuples.
Given = Tensor | tuple["Given", ...] | dict[str, "Given"] | None


class Chain(Streamed, nn.Sequential):
    """Modules one after the other; a module of torch is applied to each stream by itself.

    An nn.Sequential inside it is a Chain, too.
    """

    def forward(self, x: Streams) -> Streams:
        return through(self, x)


class Residual(Streamed, nn.Module):
    """relu(branch(x) + shortcut(x)), stream by stream; a dead branch (None) adds nothing.

    ``branch`` ends in a ConvBN. ``shortcut`` is a ConvBN or a Chain; None is the identity. All that
    it reads and adds lives. ``activation``: "relu", or None, which leaves the sum as it is, for
    linear bottlenecks; ValueError for another.
    """

    def __init__(
        self,
        branch: nn.Module | None,
        shortcut: nn.Module | None = None,
        activation: str | None = "relu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"Residual: activation {activation!r} is neither 'relu' nor None")
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Streams) -> Streams:
        shortcut = x if self.shortcut is None else on_streams(self.shortcut, x)
        if self.branch is None:
            return shortcut if self.activation is None else tuple(map(F.relu, shortcut))
        branch = on_streams(self.branch, x)
        sums = (b.add_(s) for b, s in zip(branch, shortcut, strict=True))
        return tuple(sums if self.activation is None else map(F.relu_, sums))


class Concat(Streamed, nn.Module):
    """Each stream of x followed by the same stream of branch(x); a dead branch adds nothing."""

    def __init__(self, branch: nn.Module | None):
        super().__init__()
        self.branch = branch

    def forward(self, x: Streams) -> Streams:
        if self.branch is None:
            return x
        branch = on_streams(self.branch, x)
        return tuple(torch.cat(pair, dim=1) for pair in zip(x, branch, strict=True))


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether ``module`` only runs its children one after the other."""
    return type(module).forward in (Chain.forward, nn.Sequential.forward)


def on_streams(module: nn.Module, x: Streams) -> Streams:
    """Apply a module of a chain; a module of torch to each stream by itself."""
    if isinstance(module, Streamed):
        return module(x)
    if is_chain(module):
        return through(module, x)
    return tuple(map(module, x))


def through(modules: Iterable[nn.Module], x: Streams) -> Streams:
    """Apply modules one after the other."""
    for module in modules:
        x = on_streams(module, x)
    return x


class Classifier(nn.Module):
    """A linear classifier for each stream, of features [B, C, 1, 1]; the streams share one bias.

    ``bias``: False for none. ``window``: (H, W) of the features, if it reads a whole map. Raises
    ValueError for numbers of channels or classes that are not ints from 1 on.
    """

    name: str | None = None  # of the network's, in what nr.convert was given

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        bias: bool = True,
        window: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        if not all(type(number) is int and number > 0 for number in (in_channels, num_classes)):
            raise ValueError(f"Classifier: {in_channels!r} -> {num_classes!r}: ints from 1 on")
        self.num_classes, self.window = num_classes, (window[0], window[1])
        self.build((in_channels,))
        if not bias:
            self.linears[0].bias = None

    def build(self, in_channels: tuple[int, ...]) -> None:
        """Make fresh weights N(0, 0.01) of these widths, and a bias of 0."""
        old = self.linears if "linears" in self._modules else None
        bias = old is None or old[0].bias is not None
        self.in_channels = in_channels
        self.linears: Layers[nn.Linear | nn.Conv2d] = Layers(
            self.layer(width, bias and stream == 0) for stream, width in enumerate(in_channels)
        )
        if not self.linears[0].weight.is_meta:  # there torch would compute values in Python
            for linear in self.linears:
                nn.init.normal_(linear.weight, 0, 0.01)
            if (shared := self.linears[0].bias) is not None:
                nn.init.zeros_(shared)
        if old is not None:
            for linear in self.linears.train(old.training):
                take_after(linear, old[0])

    def layer(self, width: int, bias: bool) -> nn.Linear | nn.Conv2d:
        """A fresh layer for one stream."""
        return nn.Linear(width * self.taps, self.num_classes, bias=bias)

    @property
    def taps(self) -> int:
        """Weights of one class for one channel."""
        return self.window[0] * self.window[1]

    def blocks(self, weights: Iterable[Tensor] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (stream, weight [classes, i, pixels]) of each stream, without gradient.

        ``weights``: tensors that are cut instead, one for each stream, shaped like its weights.
        """
        weights = (
            [linear.weight.detach() for linear in self.linears] if weights is None else weights
        )
        for stream, weight in enumerate(weights):
            yield stream, weight.view(self.num_classes, -1, self.taps)

    def remade(self, in_channels: tuple[int, ...]) -> "Classifier":
        """A fresh classifier like this one, with other widths."""
        classifier = copy.copy(self)
        classifier._modules = self._modules.copy()
        classifier.build(in_channels)
        return classifier

    def adopt(self, classifier: "Classifier") -> None:
        """Take over what ``remade`` gave."""
        self.in_channels, self.linears = classifier.in_channels, classifier.linears

    def forward(self, x: Streams) -> Tensor:
        return torch.stack(self.each([stream.flatten(1) for stream in x]), dim=1)  # [B, S, classes]

    def maps(self, x: Streams) -> Streams:
        """The logits of each stream by itself, [B, classes, 1, 1]."""
        logits = self.each([stream.flatten(1) for stream in x])
        return tuple(part[:, :, None, None] for part in logits)

    def each(self, x: Iterable[Tensor]) -> list[Tensor]:
        """The logits of each stream, with the bias that all share."""
        logits = [linear(stream) for linear, stream in zip(self.linears, x, strict=True)]
        if self.linears[0].bias is not None:
            logits[1:] = [add_bias(part, self.linears[0].bias) for part in logits[1:]]
        return logits


class Head(Classifier):
    """A convolution for each stream that gives maps of classes [B, classes, H, W], in an nr.Graph.

    ``kernel_size``, ``stride``, ``padding``, ``dilation``: (height, width).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        kernel_size: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        bias: bool = True,
    ):
        self.stride, self.padding, self.dilation = stride, padding, dilation
        super().__init__(in_channels, num_classes, bias, kernel_size)

    def layer(self, width: int, bias: bool) -> nn.Linear | nn.Conv2d:
        sides = self.stride, self.padding, self.dilation
        return nn.Conv2d(width, self.num_classes, self.window, *sides, bias=bias)

    def options(self) -> dict[str, tuple[int, int]]:
        """The arguments of torch's convolution, without channels, window and bias."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of its output, from that of its input."""
        return windows_in(size, self.window, self.stride, self.padding, self.dilation)

    def maps(self, x: Streams) -> Streams:
        return tuple(self.each(x))


@fx.wrap
def add_bias(logits: Tensor, bias: Tensor | Callable[[], Tensor]) -> Tensor:
    """Logits [B, classes, ...] plus a bias [classes]; a quantized layer's is a method."""
    bias = bias() if callable(bias) else bias
    bias = bias.to(logits.dtype)
    return logits + (bias if logits.ndim == 2 else bias[:, None, None])


class Network(nn.Module):
    """Images [B, C, H, W] to logits [B, S, classes]; S = 1, and 2 after rejuvenation.

    ``features`` ends in a global average pooling. ``image_size``: the family's usual H = W, or (H,
    W). C is the number of channels that the first unit reads. With ``classifier`` None the features
    are an nr.Graph with outputs, which are the network's. ``keep``, ``freeze``: see nr.hold.
    """

    keep: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def __init__(
        self,
        features: nn.Module,
        classifier: Classifier | None,
        image_size: int | tuple[int, int],
    ):
        super().__init__()
        self.features, self.classifier, self.image_size = features, classifier, image_size

    @property
    def heads(self) -> list[Classifier]:
        """The classifier, or the classifiers in the graph."""
        return [module for module in self.modules() if isinstance(module, Classifier)]

    @property
    def streams(self) -> int:
        head = self.heads[0] if self.classifier is None else self.classifier
        return len(head.linears)

    def forward(self, images: Tensor) -> Given:
        x = on_streams(self.features, (images,) * self.streams)
        return x if self.classifier is None else self.classifier(x)

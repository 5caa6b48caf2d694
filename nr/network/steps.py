"""What the walk finds: each operation in its place, and the channels it reads and makes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import IMAGE
from nr.network.holding import NOTHING, Held
from nr.network.layers import Classifier
from nr.network.numbers import Lists
from nr.network.plain import Size
from nr.network.ties import Ties
from nr.network.units import Norm, Unit


class Step(NamedTuple):
    """An operation in its place: ``op`` is a module, or one of the words of nr.network.graph.

    - ``inputs``: the steps that it reads.
    - ``numbers``: the channels that it gives, a list for each stream. A sum has those of its last
      operand, a classifier the classes, the same in each stream.
    - ``sources``: the steps that made these channels; of the last classifier, those it reads.
    - ``size``: its (H, W).
    - ``fork``: of a sum, the step at which its operands part.
    """

    name: str
    op: nn.Module | str
    inputs: tuple[str, ...]
    numbers: Lists
    sources: tuple[str, ...]
    size: Size
    fork: str | None = None


class Layer(NamedTuple):
    """A unit, or a norm before a convolution, in its place.

    - ``sources``: the steps that made what it reads, in this order.
    - ``reads``, ``numbers``: the channels that it reads and makes, a list for each stream.
    - ``size``: (H, W) of its output. ``windows``: how many windows it computes along (H, W); a
      transposed convolution has one for each pixel of its input.
    - ``branch``: in a tree of containers, the residual or dense container that can be dropped.
    - ``fixed``: all its outputs live, since a sum adds or forks it or it has no scale.
    - ``curved``, ``lifted``: a module, if any, that its output passes and that is not positively
      homogeneous, or is not 0 at 0.
    - ``part``: how many of its channels live, die and grow together.
    """

    name: str
    unit: Unit
    sources: tuple[str, ...]
    reads: Lists
    numbers: Lists
    size: Size
    windows: Size
    branch: str | None
    fixed: bool = False
    curved: str | None = None
    lifted: str | None = None
    part: int = 1

    @property
    def pixels(self) -> int:
        return self.windows[0] * self.windows[1]

    @property
    def scaled(self) -> bool:
        """Whether its channels have scales γ of their own."""
        return not isinstance(self.unit, Conv)


@dataclass(frozen=True)
class Wiring:
    """A whole network: every step, and in order those that make channels.

    ``ties``: what sums, groups and products join. ``source``: the number that each number scales:
    for norms before convolutions what they read, else itself. ``held``: the layers that nr.hold
    names; ``needed``: layers that may not die as a whole because of them.
    """

    steps: dict[str, Step]
    makers: list[Layer]
    ties: Ties
    source: Tensor
    held: Held = NOTHING
    needed: frozenset[str] = frozenset()

    @property
    def image_size(self) -> Size:
        """(H, W) of the images that were followed."""
        return next(iter(self.steps.values())).size

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.makers}

    @cached_property
    def layers(self) -> list[Layer]:
        """The units, which have weights."""
        return [layer for layer in self.makers if isinstance(layer.unit, ConvBN)]

    @cached_property
    def norms(self) -> list[Layer]:
        """The norms before convolutions."""
        return [layer for layer in self.makers if isinstance(layer.unit, Norm)]

    @cached_property
    def prunable(self) -> list[Layer]:
        """The layers whose scales are measured and penalised."""
        return [layer for layer in self.makers if layer.scaled and not layer.fixed]

    @cached_property
    def heads(self) -> list[tuple[Step, Classifier, Lists]]:
        """The classifiers in their places, each with the channels that it reads."""
        return [
            (step, step.op, self.steps[step.inputs[0]].numbers)
            for step in self.steps.values()
            if isinstance(step.op, Classifier)
        ]

    def holding(self, held: Held) -> "Wiring":
        """The same, with the channels of these layers, and what is tied to them, held."""
        if not held.all:
            return self
        lists = [n for name in held.all & self.by_name.keys() for n in self.by_name[name].numbers]
        for step in (self.steps[name] for name in held.freeze & self.steps.keys()):
            lists += self.steps[step.inputs[0]].numbers
        numbers = torch.cat(lists)
        while not torch.equal(self.source[numbers], numbers):  # of what norms scale, too
            lists.append(self.source[numbers])
            numbers = self.source[numbers]
        ties = self.ties.holding(lists, self.makers)
        makers = [layer._replace(fixed=layer.name in ties.fixed) for layer in self.makers]
        own = torch.cat(lists)
        needed = [a.name for a in makers if torch.isin(torch.cat(a.numbers), own).any()]
        return replace(self, makers=makers, ties=ties, held=held, needed=frozenset(needed))

    @property
    def image_channels(self) -> int:
        return len(self.steps[IMAGE].numbers[0])

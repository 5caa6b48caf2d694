"""Channels that are tied: added by a sum, bound by a group or a product, or held by the user.

A sum holds what it adds, and what its operands part from: all of that lives. A group lives, dies
and grows as a whole, with the input channels that it reads; so does a gate with what it multiplies.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import ADD, MUL
from nr.network.layers import Classifier
from nr.network.numbers import joined
from nr.network.units import Norm

if TYPE_CHECKING:
    from nr.network.steps import Layer, Step


@dataclass(frozen=True)
class Ties:
    """By number, [count] each.

    ``sum``: one number for all that sums add to each other. ``part``: one number for all that live,
    die and grow together. ``fixed``: the layers whose outputs all live.
    """

    sum: Tensor
    part: Tensor
    fixed: frozenset[str]

    def holding(self, lists: Iterable[Tensor], layers: list["Layer"]) -> "Ties":
        """The same with these numbers held; one of them holds its layer and what it ties."""
        held = torch.zeros_like(self.part, dtype=torch.bool)
        for numbers in lists:
            held[self.part[numbers]] = True
        fixed = set(self.fixed)
        while True:
            more = [
                layer
                for layer in layers
                if layer.name not in fixed and held[self.part[torch.cat(layer.numbers)]].any()
            ]
            if not more:
                return replace(self, fixed=frozenset(fixed))
            fixed.update(layer.name for layer in more)
            held[self.part[torch.cat([n for layer in more for n in layer.numbers])]] = True
            for layer in more:
                if isinstance(layer.unit, Norm):  # none of its channels goes, so none that it reads
                    held[self.part[torch.cat(layer.reads)]] = True

    def size(self, numbers: Tensor) -> int:
        """How many of a layer's ``numbers`` [C] live, die and grow together."""
        if self.sum is self.part:
            return 1
        return len(numbers) // len(self.part[numbers].unique())


def ties(layers: list["Layer"], steps: Mapping[str, "Step"], count: int) -> Ties:
    """What the walked ``steps`` join and hold, for ``count`` numbers."""
    sums = list(_pairs(steps, ADD))
    groups = [pair for layer in layers for pair in _group_pairs(layer)]
    products = list(_pairs(steps, MUL))
    added = joined(sums, count)
    part = joined([*sums, *groups, *products], count) if groups or products else added
    return Ties(added, part, frozenset()).holding(_held(layers, steps, count), layers)


def _pairs(steps: Mapping[str, "Step"], word: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Lists that a sum or a product joins, place by place."""
    for step in steps.values():
        if step.op == word:
            for name in step.inputs:
                yield from zip(steps[name].numbers, step.numbers, strict=True)


def _group_pairs(layer: "Layer") -> Iterator[tuple[Tensor, Tensor]]:
    """Every channel that a group reads or makes, with the group's first output."""
    if isinstance(layer.unit, ConvBN) and layer.unit.group:
        for reads, makes in zip(layer.reads, layer.numbers, strict=True):
            first = makes.view(-1, layer.unit.group[1])[:, :1]
            for numbers, width in ((reads, layer.unit.group[0]), (makes, layer.unit.group[1])):
                groups = numbers.view(-1, width)
                yield groups.flatten(), first.expand_as(groups).flatten()


def _held(layers: list["Layer"], steps: Mapping[str, "Step"], count: int) -> Iterator[Tensor]:
    """What sums add and part from, and channels without a scale that are read without one."""
    for step in steps.values():
        if step.op == ADD:
            yield from step.numbers
            if step.fork is not None:
                yield from steps[step.fork].numbers
    bare = {layer.name for layer in layers if isinstance(layer.unit, Conv)}
    if bare:
        read = [a.reads for a in layers if not isinstance(a.unit, Norm)]
        heads = [step for step in steps.values() if isinstance(step.op, Classifier)]
        read += [steps[head.inputs[0]].numbers for head in heads]
        direct = torch.zeros(count, dtype=torch.bool, device="cpu")  # by number
        direct[torch.cat([numbers for lists in read for numbers in lists])] = True
        for layer in layers:
            if layer.name in bare:
                own = torch.cat(layer.numbers)
                yield own[direct[own]]

"""How many channels come back, of which kind, and where they are read (paper section 3.3).

A part is a set of channels that live and grow together. Parts form a family if the same layers
share them. Of a family with n survivors and m fresh parts, fresh part k follows survivor
floor(k·n/m): whatever reads the survivor reads the fresh part in the same place.
"""

from collections import Counter, defaultdict
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nr.method.life import Life
from nr.network.numbers import count_to, joined
from nr.network.steps import Wiring


class Family(NamedTuple):
    """``parts``: their labels [n], in order. ``widths``: a part's channels in each layer."""

    parts: Tensor
    widths: dict[str, int]


class Families:
    """The parts of a network of one stream, and what grows of them.

    ``part``: the part of each number, also of what norms make of it: [count].
    """

    def __init__(self, plan: Wiring):
        self.plan = plan
        pairs = [(n.numbers[0], plan.source[n.numbers[0]]) for n in plan.norms]
        tied = (count_to(len(plan.source)), plan.ties.part)
        self.part = joined([tied, *pairs], len(plan.source)) if pairs else plan.ties.part

    @cached_property
    def all(self) -> list[Family]:
        shares: dict[int, list[str]] = defaultdict(list)
        for layer in self.plan.layers:
            for label in self.part[layer.numbers[0]].tolist():
                shares[label].append(layer.name)
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for label, names in shares.items():
            found[tuple(names)].append(label)
        return [
            Family(torch.tensor(parts, device="cpu"), Counter(names))
            for names, parts in found.items()
        ]

    def survivors(self, alive: Life, family: Family) -> Tensor:
        """The labels of the parts that live."""
        labels = torch.zeros_like(alive.live)
        for layer in (self.plan.by_name[name] for name in family.widths):
            numbers = layer.numbers[0]
            labels[self.part[numbers[alive.masks(layer)[0]]]] = True
        return family.parts[labels[family.parts]]

    @staticmethod
    def followers(count: int, fresh: int) -> Tensor:
        """How many of so many fresh parts follow each of ``count`` survivors."""
        return torch.bincount(count_to(fresh) * count // max(fresh, 1), minlength=count)

    def fresh(self, survived: Tensor, copies: Tensor, before: Tensor) -> Tensor:
        """The fresh channels behind those of a list of survivors: numbers from ``count`` on.

        Neighbours of one part are followed by whole parts. Fresh part q of channel n has the number
        count·(q + 1) + n. ``before``: how many fresh parts precede those of each label.
        """
        count, label = len(self.part), self.part[survived]
        own, length = label.unique_consecutive(return_counts=True)  # of each run of neighbours
        first, times = length.cumsum(0) - length, copies[own]
        run = count_to(len(own)).repeat_interleave(times)  # of each fresh part
        part = before[own[run]] + count_to(len(run)) - (times.cumsum(0) - times)[run]
        place = count_to(len(run)).repeat_interleave(length[run])  # of each fresh channel
        inside = count_to(len(place)) - (length[run].cumsum(0) - length[run])[place]
        return count * (part[place] + 1) + survived[first[run[place]] + inside]

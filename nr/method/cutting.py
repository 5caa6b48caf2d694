"""What of a network lives and grows, and the lists, widths and parameters that follow."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nr.method.growth import Families
from nr.method.layout import Layout
from nr.method.life import Life
from nr.method.rebuilding import form_of
from nr.network.convolutions import ConvBN
from nr.network.layers import Classifier
from nr.network.numbers import Lists
from nr.network.steps import Layer, Wiring
from nr.network.units import FORMS, PRUNED, Unit


@dataclass(frozen=True)
class Cut:
    """``copies``: fresh parts behind each part, by label [count].

    ``cross``, ``from_scratch``: see nr.plan.
    """

    families: Families
    alive: Life
    copies: Tensor
    cross: str
    from_scratch: bool

    @property
    def wired(self) -> Wiring:
        return self.families.plan

    @property
    def form(self) -> str:
        """The form of the rebuilt units, where nothing forbids it."""
        return "plain" if self.from_scratch or self.cross == PRUNED else self.cross

    @cached_property
    def changes(self) -> bool:
        """Whether anything goes or comes."""
        masks = (self.alive.masks(layer)[0] for layer in self.wired.makers)
        return bool(self.copies.any()) or not all(mask.all() for mask in masks)

    @cached_property
    def layout(self) -> Layout:
        """Which channels stand where afterwards."""
        before = self.copies.cumsum(0) - self.copies

        def made(lists: Lists) -> Lists:
            survived = lists[0][self.alive.of(lists[0])]
            pair = (survived, self.families.fresh(survived, self.copies, before))
            return (torch.cat(pair),) if self.form == "plain" else pair

        return Layout(self.wired, made).lay()

    def survivors(self, layer: Layer) -> tuple[list[int], list[int]]:
        """The outputs of a layer that stay, and how many fresh channels follow each."""
        places = self.alive.masks(layer)[0].nonzero().flatten()
        label = self.families.part[layer.numbers[0][places]]
        return places.tolist(), self.copies[label].tolist()

    def params(self) -> int:
        """Parameters afterwards, without biases that take up what dead scales give."""
        layout, found = self.layout, 0
        for name, lists in layout.lists.items():
            op = layout.plan.steps[name].op
            if isinstance(op, Unit | Classifier):
                reads, makes = (tuple(map(len, side)) for side in (layout.read(name), lists))
                found += self.params_of(name, op, reads, makes)
            elif isinstance(op, nn.Module):
                found += sum(parameter.numel() for parameter in op.parameters())
        return found

    def params_of(
        self, name: str, op: Unit | Classifier, reads: tuple[int, ...], makes: tuple[int, ...]
    ) -> int:
        if isinstance(op, Classifier):
            bias = op.linears[0].bias is not None
            return op.num_classes * (op.taps * sum(reads) + bias)
        found = sum(makes) * len([*op.norms[0].parameters()])
        if isinstance(op, ConvBN):
            form = form_of(self.wired.by_name[name], self.form, self.wired.held.freeze)
            for ins, outs in FORMS[form]:
                inputs = op.group[0] if op.group else sum(reads[i] for i in ins)
                found += op.taps * inputs * sum(makes[o] for o in outs)
        return found

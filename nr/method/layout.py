"""Which channels stand where in a rebuilt network: lists for each step and each new stream.

Numbers below ``count`` are channels of the old network, which keep their weights; others are fresh.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nr.network.graph import ADD, CAT, IMAGE, MUL, Pick
from nr.network.layers import Classifier
from nr.network.numbers import Lists, nth
from nr.network.steps import Layer, Step, Wiring
from nr.network.units import Norm

Made = Callable[[Lists], Lists]  # old lists of one layer or selection -> one list a new stream


@dataclass
class Layout:
    """``lists``: by name what each step gives, a list for each new stream; dropped steps have none.

    ``needs``: (step, number of its input) -> the list that it needs there.
    """

    plan: Wiring
    made: Made
    lists: dict[str, Lists] = field(default_factory=dict)
    needs: dict[tuple[str, int], Lists] = field(default_factory=dict)

    def read(self, name: str, k: int = 0) -> Lists:
        """The lists that a step reads from its input k."""
        given = self.lists[self.plan.steps[name].inputs[k]]
        return self.needs.get((name, k), given)

    def lay(self) -> "Layout":
        """Follow every step of the network."""
        streams = len(self.made(self.plan.steps[IMAGE].numbers))
        self.lists[IMAGE] = (self.plan.steps[IMAGE].numbers[0],) * streams
        for step in self.plan.steps.values():
            if step.op != IMAGE:
                self.follow(step)
        return self

    def follow(self, step: Step) -> None:
        """One step, after those that it reads."""
        here = {k: self.lists[n] for k, n in enumerate(step.inputs) if n in self.lists}
        if not here or (step.op == MUL and len(here) < len(step.inputs)):
            return
        last = list(here.values())[-1]
        image = len(self.lists[IMAGE][0])
        if isinstance(step.op, Pick) and (step.numbers[0] < image).all():
            self.lists[step.name] = (step.numbers[0],) * len(last)  # of the image, which stays
            return
        if isinstance(step.op, Classifier):  # of classes, which stay too
            self.lists[step.name] = (step.numbers[0],) * len(last)
            return
        if step.name in self.plan.by_name or isinstance(step.op, Pick):
            order = self.order(step.numbers)
            found = tuple(self.beside(order, step.numbers, made) for made in self.made(order))
            if not any(map(len, found)):
                return
            need = self.needed(step, found)
        elif step.op == CAT:
            found, need = tuple(map(torch.cat, zip(*here.values(), strict=True))), None
        elif step.op == MUL:
            found, need = self.multiply(step)
        elif step.op == ADD:
            found, need = self.add(step, here)
        else:
            found, need = last, None
        self.lists[step.name] = found
        if need is not None:
            for k, given in here.items():
                self.want(step, k, need, given)

    def order(self, numbers: Lists) -> Lists:
        """What channels are ordered by: the same for all that sums add, if it tells them apart."""
        same = tuple(self.plan.ties.sum[stream] for stream in numbers)
        if all(map(torch.equal, same, numbers)):
            return numbers
        return same if len(torch.cat(same).unique()) == sum(map(len, same)) else numbers

    def want(self, step: Step, k: int, need: Lists, given: Lists) -> None:
        """Note that a step needs its input k in the order ``need``."""
        if not all(map(torch.equal, need, given)):
            self.needs[step.name, k] = need

    def add(self, step: Step, here: dict[int, Lists]) -> tuple[Lists, None]:
        """A sum has the list of its last operand that is left; the others give what is beside."""
        own = step.numbers
        sides = {k: self.plan.steps[step.inputs[k]].numbers for k in here}
        last = max(here)
        found = tuple(self.beside(sides[last], own, stream) for stream in here[last])
        for k, side in sides.items():
            need = tuple(self.beside(own, side, stream) for stream in found)
            self.want(step, k, need, here[k])
        return found, None

    def multiply(self, step: Step) -> tuple[Lists, None]:
        """A product has the list of what is multiplied; factors give what is beside it."""
        sides = [self.plan.steps[name].numbers for name in step.inputs]
        own = step.numbers
        main = next(k for k, side in enumerate(sides) if all(map(torch.equal, side, own)))
        found = self.lists[step.inputs[main]]
        for k, side in enumerate(sides):
            if k != main:
                need = tuple(self.beside(own, side, stream) for stream in found)
                self.want(step, k, need, self.lists[step.inputs[k]])
        return found, None

    def beside(self, own: Lists, other: Lists, made: Tensor) -> Tensor:
        """For channels of ``own`` the ones that stood at the same places in ``other``.

        The n-th of several equal ones goes with the n-th.
        """
        if own is other:
            return made
        given, beside, old = torch.cat(own), torch.cat(other), made % len(self.plan.source)
        order = given.argsort(stable=True)
        first = torch.searchsorted(given[order], old)
        last = torch.searchsorted(given[order], old, right=True) - 1
        return beside[order[torch.minimum(first + nth(made), last)]] + made - old

    def dropped(self) -> tuple[str, ...]:
        """The sums and concatenations that lose some of their inputs."""
        return tuple(
            name
            for name in self.lists
            if self.plan.steps[name].op in (ADD, CAT)
            and any(source not in self.lists for source in self.plan.steps[name].inputs)
        )

    def needed(self, step: Step, made: Lists) -> Lists | None:
        """The order in which a step has to read its input to make this; None: any order."""
        if isinstance(step.op, Pick):
            return made
        layer = self.plan.by_name[step.name]
        if isinstance(layer.unit, Norm):
            width = (1, 1)
        elif layer.unit.group is None:
            return None
        else:
            width = layer.unit.group
        return tuple(self.sources(layer, numbers, *width) for numbers in made)

    def sources(self, layer: Layer, made: Tensor, ins: int, outs: int) -> Tensor:
        """For groups of outputs, in order, the inputs that they read."""
        reads = torch.cat(layer.reads).view(-1, ins)
        first = torch.cat(layer.numbers)[::outs]
        columns = [self.beside((first,), (column,), made[::outs]) for column in reads.unbind(1)]
        return torch.stack(columns, dim=1).flatten()

"""Which channels live: by their own scale, by what they are made of, and by who reads them.

Specification section 3. A channel carries something if its scale lives and something that it is
made of does. It is read if a living reader reads it, through a living scale if there is one. What
is tied together lives only if all of it does.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nr.network.graph import IMAGE, MUL
from nr.network.layers import Classifier
from nr.network.norms import Bias
from nr.network.steps import Layer, Step, Wiring
from nr.network.units import Norm

DEAD_RATIO = 1e-2  # a channel is dead below this fraction of its layer's max |γ| (spec section 3)
DEAD_GAMMA = 1e-3  # a prunable layer is dead as a whole below this max |γ| (spec section 3)

Stream = tuple[str, int]  # a layer's name and one of its streams


class Life(NamedTuple):
    """``live``: by number, bool [count]. ``dead``: streams of layers that are dead as a whole."""

    plan: Wiring
    live: Tensor
    dead: frozenset[Stream]

    def of(self, numbers: Tensor) -> Tensor:
        """Which numbers of an activation live: bool [C]."""
        return self.live[self.plan.ties.sum[numbers]]

    def masks(self, layer: Layer) -> tuple[Tensor, ...]:
        """Which outputs of a layer live: a bool [C] for each stream."""
        return tuple(
            torch.zeros_like(numbers, dtype=torch.bool)
            if (layer.name, stream) in self.dead
            else self.of(numbers)
            for stream, numbers in enumerate(layer.numbers)
        )


def life(plan: Wiring) -> Life:
    """The life of every channel, from the scales alone."""
    gammas = absolute_gammas(plan)
    strong, weak = _by_scales(plan, gammas)
    return lives(plan, strong, gammas, weak)


def lives(plan: Wiring, strong: Tensor, gammas: Tensor, weak: Iterable[Stream] = ()) -> Life:
    """The life of every channel, where ``strong`` says whose scale lives: bool by number.

    ``weak``: the layers' streams that have no living scale. Such a stream is dead if the network
    goes on without it; else its strongest channel stays.
    """
    dead: set[Stream] = set()
    weak = list(weak)
    hopeful = strong.clone()  # until it is known of a layer that it is dead
    for name, stream in weak:
        hopeful[plan.by_name[name].numbers[stream]] = True
    for name, stream in weak:
        if strong[plan.by_name[name].numbers[stream]].any():
            continue  # revived with another that it is tied to
        if _goes_on(plan, hopeful, dead | {(name, stream)}, stream):
            dead.add((name, stream))
        else:
            strong = _revived(plan, strong, gammas, name, stream)
    if not dead and not plan.norms:  # then everything is made of something, and read
        return Life(plan, strong, frozenset())
    return _settled(plan, strong, dead)


def absolute_gammas(plan: Wiring) -> Tensor:
    """|γ| by number [count], in one transfer to the CPU; 1 where there is no scale."""
    like = plan.layers[0].unit.convs[0].weight
    scales = [
        like.new_ones(norm.width) if isinstance(norm, Bias) else norm.weight.detach()
        for layer in plan.makers
        for norm in layer.unit.norms
    ]
    flat = torch.cat(scales).abs()
    if hasattr(flat, "full_tensor"):  # sharded over processes
        flat = flat.full_tensor()
    flat = flat.cpu()
    if not torch.isfinite(flat).all():
        raise ValueError("a batch-norm scale of this network is not a finite number")
    found = flat.new_ones(len(plan.source))
    found[torch.cat([numbers for layer in plan.makers for numbers in layer.numbers])] = flat
    return found


def _by_scales(plan: Wiring, gammas: Tensor) -> tuple[Tensor, list[Stream]]:
    """The channels whose scale lives, and the layers' streams without any, in order."""
    strong = torch.ones_like(gammas, dtype=torch.bool)
    prunable = plan.prunable
    lists = [numbers for layer in prunable for numbers in layer.numbers]
    if not lists:
        return strong, []
    numbers = torch.cat(lists)
    rows = torch.cat([torch.full_like(n, row) for row, n in enumerate(lists)])
    largest = gammas.new_zeros(len(lists)).scatter_reduce(0, rows, gammas[numbers], "amax")
    alive = (gammas[numbers] >= DEAD_RATIO * largest[rows]) & (largest[rows] >= DEAD_GAMMA)
    strong[numbers] = alive
    strong = whole_parts(plan, strong)
    found = rows.new_zeros(len(lists)).index_add(0, rows, strong[numbers].long())
    streams = [(layer.name, s) for layer in prunable for s in range(len(layer.numbers))]
    return strong, [streams[row] for row in (found == 0).nonzero().flatten().tolist()]


def whole_parts(plan: Wiring, strong: Tensor) -> Tensor:
    """A part lives if it has a living channel in every layer that shares it and can die."""
    if plan.ties.sum is plan.ties.part:
        return strong
    part, live = plan.ties.part, torch.ones_like(strong)
    lists = [n for layer in plan.makers if not layer.fixed for n in layer.numbers]
    for numbers in lists:
        alive = torch.zeros_like(strong)
        alive[part[numbers[strong[numbers]]]] = True
        live[part[numbers[~alive[part[numbers]]]]] = False
    own = torch.cat(lists)
    return strong.index_put((own,), live[part[own]])


def part_scores(plan: Wiring, gammas: Tensor) -> Tensor:
    """How strong the part of each number is: [count], at the number that stands for the part.

    In a layer that is its largest |γ|; over several layers the least, relative to each layer's
    largest.
    """
    part = plan.ties.part
    score = torch.full_like(gammas, torch.inf)
    for layer in plan.prunable:
        for numbers in layer.numbers:
            own = torch.zeros_like(score).scatter_reduce(0, part[numbers], gammas[numbers], "amax")
            labels = part[numbers].unique()
            tiny = torch.finfo(gammas.dtype).tiny
            relative = own[labels] / gammas[numbers].max().clamp(min=tiny)
            score[labels] = torch.minimum(score[labels], relative)
    return score


def _revived(plan: Wiring, strong: Tensor, gammas: Tensor, name: str, stream: int) -> Tensor:
    """``strong``, and the strongest part of one stream of a layer."""
    layer = next(layer for layer in plan.makers if layer.name == name)
    numbers, part = layer.numbers[stream], plan.ties.part
    best = numbers[part_scores(plan, gammas)[part[numbers]].argmax()]
    return strong | (part == part[best])


def _goes_on(plan: Wiring, strong: Tensor, dead: set[Stream], stream: int) -> bool:
    """Whether a network without what is dead still has its outputs, and all that is held."""
    if not _reaches(plan, strong, dead, stream):
        return False
    if not plan.needed:
        return True
    return plan.needed.isdisjoint(name for name, _ in _settled(plan, strong, dead).dead)


def _reaches(plan: Wiring, strong: Tensor, dead: set[Stream], stream: int) -> bool:
    """Whether every output in this stream is still made of something that is not dead."""
    place, carried = plan.ties.sum, torch.zeros_like(strong)
    for step in plan.steps.values():
        if step.op == IMAGE:
            carried[step.numbers[stream]] = True
        elif isinstance(step.op, Classifier):
            reads = plan.steps[step.inputs[0]].numbers[stream]
            if not carried[place[reads]].any():
                return False
            carried[step.numbers[stream]] = True
        elif step.op == MUL:
            _multiply(plan, step, stream, carried)
        elif step.name in plan.by_name and (step.name, stream) not in dead:
            _carry(plan, plan.by_name[step.name], stream, strong, carried)
    return True


def _carry(plan: Wiring, layer: Layer, stream: int, strong: Tensor, carried: Tensor) -> bool:
    """Mark what one stream of a layer carries, given what it reads; whether that is anything."""
    place = plan.ties.sum
    own, reads = place[layer.numbers[stream]], carried[place[layer.reads[stream]]]
    alive = reads & strong[own] if isinstance(layer.unit, Norm) else strong[own] & reads.any()
    carried[own] |= alive
    return bool(alive.any())


def _multiply(plan: Wiring, step: Step, stream: int, carried: Tensor) -> None:
    """A product carries what both sides carry."""
    place = plan.ties.sum
    for side in step.inputs:
        factor = carried[place[plan.steps[side].numbers[stream]]]
        carried[place[step.numbers[stream]]] &= factor


def _settled(plan: Wiring, strong: Tensor, dead: set[Stream]) -> Life:
    """What is carried and read, with all that is dead because something else is."""
    while True:
        carried, fallen = _forward(plan, strong, dead)
        live, unread = _backward(plan, carried, dead | fallen)
        live = whole_parts(plan, live)
        found = dead | fallen | unread
        if found == dead and torch.equal(live, strong):
            return Life(plan, live, frozenset(dead))
        strong, dead = live, found


def _forward(plan: Wiring, strong: Tensor, dead: set[Stream]) -> tuple[Tensor, set[Stream]]:
    """The live channels that are made of live ones, and the layers that read none."""
    carried, fallen = torch.zeros_like(strong), set()
    for name, step in plan.steps.items():
        if step.op == IMAGE or isinstance(step.op, Classifier):
            carried[torch.cat(step.numbers)] = True
        elif step.op == MUL:
            for stream in range(len(step.numbers)):
                _multiply(plan, step, stream, carried)
        elif name in plan.by_name:
            layer = plan.by_name[name]
            for stream in range(len(layer.numbers)):
                alive = (name, stream) not in dead
                if alive and not _carry(plan, layer, stream, strong, carried):
                    fallen.add((name, stream))
    return carried, fallen


def _backward(plan: Wiring, carried: Tensor, dead: set[Stream]) -> tuple[Tensor, set[Stream]]:
    """The carried channels that live readers read, and the layers that nothing reads."""
    place, read, unread = plan.ties.sum, torch.zeros_like(carried), set()
    for name, step in reversed(plan.steps.items()):
        if isinstance(step.op, Classifier):
            read[place[torch.cat(plan.steps[step.inputs[0]].numbers)]] = True
        elif step.op == MUL:
            for side in step.inputs:
                for factor, product in zip(plan.steps[side].numbers, step.numbers, strict=True):
                    read[place[factor]] |= read[place[product]]
        elif name in plan.by_name:
            layer = plan.by_name[name]
            for stream, numbers in enumerate(layer.numbers):
                if (name, stream) in dead:
                    continue
                alive = read[place[numbers]] & carried[place[numbers]]
                if not alive.any():
                    unread.add((name, stream))
                elif isinstance(layer.unit, Norm):
                    read[place[layer.reads[stream]]] |= alive
                else:
                    read[place[layer.reads[stream]]] = True
    read[torch.cat(plan.steps[IMAGE].numbers)] = True
    for step, *_ in plan.heads:
        read[torch.cat(step.numbers)] = True
    return carried & read, unread

"""New lists of channels -> fresh units, the old weights in their places -> the swap."""

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from nr.method.layout import Layout
from nr.method.selecting import Selections, graphs
from nr.network.convolutions import ConvBN
from nr.network.graph import IMAGE
from nr.network.layers import Classifier, Concat, Network, Residual
from nr.network.numbers import Lists, count_to, matched
from nr.network.retiring import retire
from nr.network.steps import Layer
from nr.network.units import Unit

Op = Unit | Classifier
Values = Mapping[str, Tensor]  # of one op, by name in it


def remade(layout: Layout, form: str, apart: Set[str] = frozenset()) -> dict[str, Op]:
    """Fresh units and classifiers for a layout, by name; the network keeps its own.

    ``apart``: layers whose second stream is not connected to the first, and trains.
    """
    found: dict[str, Op] = {}
    for name in layout.lists:
        step = layout.plan.steps[name]
        if name in layout.plan.by_name:
            layer = layout.plan.by_name[name]
            widths = [tuple(map(len, lists)) for lists in (layout.read(name), layout.lists[name])]
            found[name] = layer.unit.remade(form_of(layer, form, apart), *widths)
        elif isinstance(step.op, Classifier):
            found[name] = step.op.remade(tuple(map(len, layout.read(name))))
    weights = [conv.weight for layer in layout.plan.layers for conv in layer.unit.convs]
    if any(not weight.is_contiguous() for weight in weights):
        for unit in found.values():
            unit.to(memory_format=torch.channels_last)
    for name in apart & found.keys():
        for layers in found[name].children():
            for second in [*layers.children()][1:]:
                second.requires_grad_(True)
    return found


def form_of(layer: Layer, form: str, apart: Set[str] = frozenset()) -> str:
    """There are no cross blocks in the stem, which reads the image twice, nor between groups."""
    joined = isinstance(layer.unit, ConvBN) and IMAGE not in layer.sources
    joined = joined and layer.unit.group is None and layer.name not in apart
    return form if form == "plain" or joined else "removed"


@dataclass
class Move:
    """Where a unit or classifier had its channels, and where it has them now.

    ``old``, ``new``: without their layers. ``reads``, ``own``: the channels that they read and
    make, as (new, old). ``before``: the old parameters' shapes; ``heirs``: the new parameters; both
    by name. ``kept``: whether the new ones have the old ones' values.
    """

    old: Op
    new: Op
    reads: tuple[Lists, Lists]
    own: tuple[Lists, Lists]
    before: dict[str, torch.Size] = field(default_factory=dict)
    heirs: dict[str, nn.Parameter] = field(default_factory=dict)
    kept: bool = True

    def copy(self, ours: Values, theirs: Values) -> None:
        """Copy what ``theirs``, the old op, has for all channels that both have into ``ours``."""
        if isinstance(self.new, Classifier) and isinstance(self.old, Classifier):
            self.copy_columns(self.new, self.old, ours, theirs)
        elif isinstance(self.new, Unit) and isinstance(self.old, Unit):
            self.copy_unit(self.new, self.old, ours, theirs)

    def copy_unit(self, new: Unit, old: Unit, ours: Values, theirs: Values) -> None:
        """Of a unit, the blocks and norms of the channels that both have."""
        rows, columns = _all_matched(*self.own), _all_matched(*self.reads)
        for i, o, block in new.blocks(_weights(ours)):
            for old_i, old_o, old_block in old.blocks(_weights(theirs)):
                read = columns[i, old_i]
                if old.group is not None:  # a group that lives keeps all its inputs
                    read = (count_to(old_block.shape[1]),) * 2
                _copy(block, old_block, rows[o, old_o], read)
        for (norm, old_norm), places in rows.items():
            _copy_norm(_inside(ours, norm), _inside(theirs, old_norm), places)

    def copy_columns(self, new: Classifier, old: Classifier, ours: Values, theirs: Values) -> None:
        """Of a classifier, the columns that both have, and the shared bias."""
        classes = (count_to(old.num_classes),) * 2
        for stream, block in new.blocks(_weights(ours)):
            for old_stream, old_block in old.blocks(_weights(theirs)):
                columns = matched(self.reads[0][stream], self.reads[1][old_stream])
                _copy(block, old_block, classes, columns)
        for name in ours.keys() & theirs.keys():
            if name.endswith(".bias"):
                ours[name].copy_(theirs[name])


def _all_matched(new: Lists, old: Lists) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """The places of what both hold, by (new stream, old stream)."""
    return {(i, j): matched(a, b) for i, a in enumerate(new) for j, b in enumerate(old)}


def _weights(values: Values) -> list[Tensor]:
    """The weights of the convolutions or linear layers of an op."""
    names = ("convs.", "linears.")
    return [x for n, x in values.items() if n.startswith(names) and n.endswith(".weight")]


def _inside(values: Values, norm: int) -> Values:
    """The tensors of one of a unit's norms."""
    start = f"norms.{norm}."
    return {n.removeprefix(start): x for n, x in values.items() if n.startswith(start)}


def _copy(new: Tensor, old: Tensor, *places: tuple[Tensor, Tensor]) -> None:
    """Copy entries of the first two dimensions; ``places`` are (new, old)."""
    (rows, old_rows), (columns, old_columns) = (
        [side.to(old.device) for side in pair] for pair in places
    )
    if len(rows) and len(columns):
        new[rows[:, None], columns] = old[old_rows][:, old_columns]


def _copy_norm(ours: Values, theirs: Values, places: tuple[Tensor, Tensor]) -> None:
    for name in ours.keys() & theirs.keys():
        here, there = (side.to(ours[name].device) for side in places)
        if ours[name].ndim and len(here):
            ours[name][here] = theirs[name][there]
        elif len(here):
            ours[name].copy_(theirs[name])


def moves(layout: Layout, made: Mapping[str, Op]) -> dict[str, Move]:
    """Where the channels of everything that was ``made`` come from."""
    steps = layout.plan.steps
    return {
        name: Move(
            _bare(_old(layout, name)),
            _bare(unit),
            (layout.read(name), steps[steps[name].inputs[0]].numbers),
            (layout.lists[name], steps[name].numbers),
        )
        for name, unit in made.items()
    }


def _old(layout: Layout, name: str) -> Op:
    """The unit or classifier that a new one will replace."""
    return cast(Op, layout.plan.steps[name].op)


def _bare(op: Op) -> Op:
    """``op`` without its layers."""
    found = copy.copy(op)
    found._modules = {}
    return found


@torch.no_grad()
def transplant(layout: Layout, made: Mapping[str, Op], moved: Mapping[str, Move]) -> None:
    """Copy the weights and norms of all channels that the old network has."""
    for name, move in moved.items():
        move.copy(made[name].state_dict(), _old(layout, name).state_dict())


def swap(
    model: Network,
    layout: Layout,
    made: Mapping[str, Op],
    moved: Mapping[str, Move],
    kept: bool = True,
) -> None:
    """Put everything that was made in its place; nothing here can fail.

    ``kept``: whether it has the old weights.
    """
    old = list(model.parameters())
    origins = {}
    for name, move in moved.items():
        move.kept = kept
        move.heirs.update(made[name].named_parameters())
        for path, parameter in _old(layout, name).named_parameters():
            move.before[path], origins[id(parameter)] = parameter.shape, (move, path)
    for name, unit in made.items():
        place = _old(layout, name)
        if isinstance(unit, Classifier) and isinstance(place, Classifier):  # noqa: SIM114
            place.adopt(unit)
        elif isinstance(unit, Unit) and isinstance(place, Unit):
            place.adopt(unit)
    modules = dict(model.named_modules())
    for name in layout.dropped():
        container = modules.get(name)
        if isinstance(container, Residual | Concat):
            container.branch = None
    for name, graph in graphs(model):
        graph.rewrite(*Selections(layout, graph, f"{name}.").rewritten())
    retire(model, old, origins)

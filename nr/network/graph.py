"""A network as a directed acyclic graph: each node is an operation on what other nodes give.

An activation is a tuple of streams: ``(all,)`` before rejuvenation, ``(survived, rejuvenated)``
after it. Chain, Residual and Concat are short ways to write a graph; the walk treats all alike.
"""

import operator
from collections.abc import Iterable, Mapping, Set
from functools import reduce
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nr.network.layers import Classifier, Given, on_streams
from nr.network.units import Streamed, Streams

IMAGE = "image"  # the name of what comes in
ADD, CAT, MUL = "add", "cat", "mul"  # operations of several activations, stream by stream
FLAT = "flat"  # of one of a single pixel, which only an output is: [B, C]
WORDS = (ADD, CAT, MUL, FLAT)
Outputs = str | list["Outputs"] | dict[str, "Outputs"] | None  # names of nodes


class Node(NamedTuple):
    """``op``: a word of WORDS; None calls the module of this name. ``inputs``: names of nodes."""

    name: str
    op: str | None
    inputs: tuple[str, ...]


class Pick(Streamed, nn.Module):
    """Selects channels of each stream in any order: a list of places for each stream."""

    def __init__(self, places: Iterable[Iterable[int]]):
        super().__init__()
        self.places = [list(map(int, chosen)) for chosen in places]
        for stream, chosen in enumerate(self.places):
            index = torch.tensor(chosen, dtype=torch.long, device="cpu")
            self.register_buffer(f"places{stream}", index, persistent=False)

    def forward(self, x: Streams) -> Streams:
        pairs = zip(x, self.buffers(), strict=True)
        return tuple(torch.index_select(stream, 1, places) for stream, places in pairs)


class Graph(Streamed, nn.Module):
    """Nodes in order. Each reads earlier ones or the image; the last one is the output.

    ``modules``: by the name of the node that calls it; dots make a path. ``outputs``: for a network
    without a classifier, the nodes that are its outputs, in dicts and tuples, each with its streams
    stacked along dimension 1. ``training``: the outputs of train mode, if they are others. Raises
    ValueError for a node that reads what is not there, and for two nodes of one name.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        modules: Mapping[str, nn.Module],
        outputs: Outputs = None,
        training: Outputs = None,
    ):
        super().__init__()
        self.outputs, self.training_outputs = outputs, training
        self.rewrite(nodes, modules)

    def rewrite(self, nodes: Iterable[Node], modules: Mapping[str, nn.Module]) -> None:
        """Replace the nodes. Their modules are among ``modules``, or in the graph already.

        Modules stand in the order of their nodes, as they do when a network is read from a file: an
        optimizer's file knows parameters by their order.
        """
        self.nodes = list(nodes)
        for name, module in modules.items():
            self.put(name, module)
        _keep(self, [tuple(node.name.split(".")) for node in self.nodes if node.op is None])
        self.check()

    def put(self, name: str, module: nn.Module) -> None:
        """Place ``module`` at a path."""
        *path, last = name.split(".")
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, module)

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.get_submodule(node.name) if node.op is None else None

    def check(self) -> None:
        known, flat = {IMAGE}, {node.name for node in self.nodes if node.op == FLAT}
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known - flat]
            if missing or not node.inputs or node.name in known:
                raise ValueError(f"{node.name}: reads {missing}, or is there twice")
            if node.op not in (*WORDS, None):
                raise ValueError(f"{node.name}: operation {node.op!r} is none of {WORDS}")
            known.add(node.name)
        if lost := self.ends() - known:
            raise ValueError(f"{sorted(lost)[0]}: is an output, and no node")
        self.orders = {mode: _order(self.nodes, self.ends(mode)) for mode in (False, True)}

    def given(self, training: bool) -> Outputs:
        """The outputs of one mode; None stands for the last node."""
        return self.training_outputs if training and self.training_outputs else self.outputs

    def ends(self, *modes: bool) -> set[str]:
        """The names of all outputs, or of one mode's."""
        if self.outputs is None:
            return {self.nodes[-1].name}
        return {name for m in modes or (False, True) for name in tree_leaves(self.given(m)) if name}

    def forward(self, x: Streams) -> Given:
        values = {IMAGE: x}
        for node, free in self.orders[self.training]:
            read = [values[name] for name in node.inputs]
            for name in free:
                del values[name]
            values[node.name] = self.run(node, read)
        if self.outputs is None:
            return values[self.nodes[-1].name]
        return _stacked(self.given(self.training), values)

    def run(self, node: Node, read: list[Streams]) -> Streams:
        """What ``node`` gives for the activations that it reads."""
        if node.op is None:
            module: nn.Module = self
            for part in node.name.split("."):  # torch 2.6 compiles no get_submodule
                module = module._modules[part]  # type: ignore[assignment] # which is there
            if isinstance(module, Classifier):
                return module.maps(*read)
            return on_streams(module, *read)
        if node.op == FLAT:
            return tuple(stream.flatten(1) for stream in read[0])
        if len(read) == 1:  # what follows may change it in place, and others read it
            return tuple(map(torch.clone, read[0]))
        streams = zip(*read, strict=True)
        if node.op == CAT:
            return tuple(torch.cat(parts, dim=1) for parts in streams)
        combine = operator.add if node.op == ADD else operator.mul
        return tuple(reduce(combine, parts) for parts in streams)


def _keep(place: nn.Module, paths: list[tuple[str, ...]]) -> None:
    """Drop modules that are on none of the paths, and order the others like the paths."""
    inner: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in paths:
        inner.setdefault(first, []).append(tuple(rest))
    children = {name: place.get_submodule(name) for name in inner}
    place._modules.clear()
    place._modules.update(children)
    for name, rests in inner.items():
        if () not in rests:
            _keep(children[name], rests)


def read_by(nodes: list[Node], ends: Set[str]) -> list[Node]:
    """The nodes that ``ends`` are computed from, in order."""
    needed, found = {*ends}, []
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
            found.append(node)
    return found[::-1]


def _order(nodes: list[Node], ends: Set[str]) -> list[tuple[Node, list[str]]]:
    """The nodes that ``ends`` need, each with the activations that it is the last to read."""
    nodes = read_by(nodes, ends)
    last = {name: place for place, node in enumerate(nodes) for name in node.inputs}
    frees: list[list[str]] = [[] for _ in nodes]
    for name, place in last.items():
        if name not in ends:
            frees[place].append(name)
    return list(zip(nodes, frees, strict=True))


def _stacked(outputs: Outputs, values: Mapping[str, Streams]) -> Given:
    """``outputs``, each with its streams along dimension 1: [B, S, ...]."""
    if outputs is None:
        return None
    if isinstance(outputs, str):
        return torch.stack(values[outputs], dim=1)
    if isinstance(outputs, Mapping):
        return {name: _stacked(part, values) for name, part in outputs.items()}
    return tuple(_stacked(part, values) for part in outputs)

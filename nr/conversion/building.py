"""The graph of units that is made of a traced network, and its activations."""

from collections.abc import Set
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.conversion import moves
from nr.network.graph import CAT, IMAGE, Node, Pick
from nr.network.plain import FixedSize


class Activation(NamedTuple):
    """A tensor: the node of the graph that gives it, and how its elements were moved since.

    ``shape``: of what the node gives, [B, C, H, W] or [B, C]. ``moved``: see moves; None if nothing
    moved.
    """

    name: str
    shape: torch.Size
    moved: Tensor | None = None

    @property
    def places(self) -> Tensor:
        return moves.places(self.shape) if self.moved is None else self.moved

    @property
    def channels(self) -> moves.Channels | None:
        """Which channels are there; None if it is not made of channels."""
        return moves.channels(self.places, self.shape)


class Builder:
    """The nodes of a graph in order, with their modules."""

    def __init__(self, image: torch.Size):
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.shapes = {IMAGE: image}  # of what the nodes give, by name
        self.inner: set[str] = set()  # what the names of nodes begin with
        self.cats: dict[str, list[tuple[str, int, int]]] = {}  # parts, their starts and widths

    def add(self, name: str, module: nn.Module, before: str, shape: torch.Size) -> Activation:
        """Add a node that calls a module."""
        name = self.free(name)
        self.modules[name] = module
        return self.node(Node(name, None, (before,)), shape)

    def join(self, name: str, word: str, names: list[str], shape: torch.Size) -> Activation:
        """Add a node that is a word of nr.network.graph."""
        name = self.free(name)
        if word == CAT:
            widths = [self.shapes[part][1] for part in names]
            starts = accumulate(widths, initial=0)
            self.cats[name] = list(zip(names, starts, widths, strict=False))
        return self.node(Node(name, word, tuple(names)), shape)

    def node(self, node: Node, shape: torch.Size) -> Activation:
        self.nodes.append(node)
        self.shapes[node.name] = shape
        self.inner.update(_above(node.name))
        return Activation(node.name, shape)

    def free(self, name: str) -> str:
        """``name``, with the first number that makes it new if it is taken."""

        def clash(text: str) -> bool:
            above = {text} | set(_above(text))
            return text in self.inner or not above.isdisjoint(self.shapes)

        number, found = 0, name
        while clash(found):
            number += 1
            found = f"{name}_{number}"
        return found

    def chosen(self, name: str, value: Activation, chosen: Tensor) -> str:
        """The name of a selection of channels; of the activation if that is all of them."""
        if torch.equal(chosen, torch.arange(value.shape[1], device="cpu")):
            return value.name
        shape = torch.Size((value.shape[0], len(chosen), *value.shape[2:]))
        return self.add(name, Pick([chosen]), value.name, shape).name

    def end_with(self, name: str) -> None:
        """Put the node of this name at the end, which is the output."""
        if self.nodes and self.nodes[-1].name != name:
            self.add("output", nn.Identity(), name, self.shapes[name])

    def prune(self, ends: Set[str]) -> None:
        """Leave out concatenations of which only parts are read, each by itself."""
        read = {name for node in self.nodes for name in node.inputs} | ends
        self.nodes = [n for n in self.nodes if n.name not in self.cats or n.name in read]

    def bind(self, fixed: FixedSize) -> None:
        """Put ``fixed`` before everything that reads the image."""
        name = self.free("size")
        self.modules[name] = fixed
        renamed = [
            node._replace(inputs=tuple(name if n == IMAGE else n for n in node.inputs))
            for node in self.nodes
        ]
        self.nodes = [Node(name, None, (IMAGE,)), *renamed]


def _above(name: str) -> list[str]:
    """The names of the modules around the one of this name."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]

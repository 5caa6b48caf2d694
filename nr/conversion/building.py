"""The graph of units that is being made of a traced network, and its activations."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.conversion import moves
from nr.network.graph import IMAGE, Node, Pick
from nr.network.plain import FixedSize


class Activation(NamedTuple):
    """A tensor: what a node of the graph gives, and how it was moved since.

    ``shape``: of what the node gives, [B, C, H, W] or [B, C]. ``moved``: see moves; None where it
    is as it was.
    """

    name: str
    shape: torch.Size
    moved: Tensor | None = None

    @property
    def places(self) -> Tensor:
        return moves.places(self.shape) if self.moved is None else self.moved

    @property
    def channels(self) -> moves.Channels | None:
        """The channels that are there; None where it has none."""
        return moves.channels(self.places, self.shape)


class Builder:
    """Nodes of a graph in order, with their modules."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.shapes: dict[str, torch.Size] = {}  # of what the nodes give, by name
        self.inner: set[str] = set()  # what the names of nodes begin with

    def add(self, name: str, module: nn.Module, before: str, shape: torch.Size) -> Activation:
        """Write down a node that calls a module."""
        name = self.free(name)
        self.modules[name] = module
        return self.node(Node(name, None, (before,)), shape)

    def join(self, name: str, word: str, names: list[str], shape: torch.Size) -> Activation:
        """Write down a node that is a word of nr.network.graph."""
        return self.node(Node(self.free(name), word, tuple(names)), shape)

    def node(self, node: Node, shape: torch.Size) -> Activation:
        self.nodes.append(node)
        self.shapes[node.name] = shape
        self.inner.update(_above(node.name))
        return Activation(node.name, shape)

    def free(self, name: str) -> str:
        """``name``, or it with the first number that makes it new."""

        def clash(text: str) -> bool:
            above = {text} | set(_above(text))
            return text in self.inner or not above.isdisjoint(self.shapes)

        number, found = 0, name
        while clash(found):
            number += 1
            found = f"{name}_{number}"
        return found

    def chosen(self, name: str, value: Activation, chosen: Tensor) -> str:
        """The name of a selection of channels; that of the activation where it is all of them."""
        if torch.equal(chosen, torch.arange(value.shape[1], device="cpu")):
            return value.name
        shape = torch.Size((value.shape[0], len(chosen), *value.shape[2:]))
        return self.add(name, Pick([chosen]), value.name, shape).name

    def end_with(self, name: str) -> None:
        """Have the node of this name at the end, which is the output."""
        if self.nodes and self.nodes[-1].name != name:
            self.add("output", nn.Identity(), name, self.shapes[name])

    def bind(self, fixed: FixedSize) -> None:
        """Have the image pass ``fixed`` first."""
        name = self.free("size")
        self.modules[name] = fixed
        renamed = [
            node._replace(inputs=tuple(name if n == IMAGE else n for n in node.inputs))
            for node in self.nodes
        ]
        self.nodes = [Node(name, None, (IMAGE,)), *renamed]


def _above(name: str) -> list[str]:
    """The modules around the one of this name."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]

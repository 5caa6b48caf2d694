"""A graph of torch.fx, written call by call, that knows which activations are flat."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from nr.conversion.modules import ELEMENTWISE
from nr.network.graph import ADD, CAT

KEEPS = (*ELEMENTWISE, nn.BatchNorm1d, nn.BatchNorm2d)  # modules of maps and of [B, C]


class Tape:
    """The graph so far, and the modules and tensors that it reads."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.parts: dict[str, nn.Module | Tensor] = {}  # what the graph calls or reads, by path
        self.flat: set[fx.Node] = set()  # activations [B, C]; the others are [B, C, H, W]

    def layer(self, path: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """A call of a module, at ``path`` or a free name like it."""
        self.parts[path] = module
        flat = isinstance(module, nn.Linear) or (isinstance(module, KEEPS) and x in self.flat)
        x = self.flattened(x) if flat else self.map(x)
        return self.marked(self.graph.call_module(path, (x,)), flat)

    def call(self, function: Callable[..., object], *arguments: Any, **options: Any) -> fx.Node:
        """A call of a function; it gives [B, C] if all that it reads is."""
        node = self.graph.call_function(function, arguments, options)
        return self.marked(node, self.flat.issuperset(node.all_input_nodes))

    def join(self, word: str, parts: tuple[fx.Node, ...]) -> fx.Node:
        """A sum, product or concatenation; a copy if only one part is there."""
        if any(part not in self.flat for part in parts):
            parts = tuple(map(self.map, parts))
        if len(parts) == 1:
            return self.copied(*parts)
        if word == CAT:
            return self.call(torch.cat, list(parts), 1)
        function = operator.add if word == ADD else operator.mul
        return reduce(lambda a, b: self.call(function, a, b), parts)

    def copied(self, x: fx.Node) -> fx.Node:
        """A copy, which what follows may change in place."""
        return self.marked(self.graph.call_method("clone", (x,)), x in self.flat)

    def tensor(self, path: str, value: Tensor) -> fx.Node:
        """A parameter or buffer of the whole module."""
        path = self.free(path)
        self.parts[path] = value
        return self.graph.get_attr(path)

    def marked(self, node: fx.Node, flat: bool) -> fx.Node:
        (self.flat.add if flat else self.flat.discard)(node)
        return node

    def flattened(self, x: fx.Node) -> fx.Node:
        """An activation as [B, C·H·W]."""
        return x if x in self.flat else self.marked(self.call(torch.flatten, x, 1), True)

    def map(self, x: fx.Node) -> fx.Node:
        """An activation as [B, C, H, W]."""
        whole = slice(None)
        if x not in self.flat:
            return x
        return self.marked(self.call(operator.getitem, x, (whole, whole, None, None)), False)

    def free(self, path: str) -> str:
        """``path``, with underscores that make it new and no name of torch's own."""
        parts = path.split(".")
        path = ".".join(f"{p}_" if hasattr(fx.GraphModule, p) else p for p in parts)
        taken = [f"{other}." for other in self.parts]
        while any(f"{path}.".startswith(t) or t.startswith(f"{path}.") for t in taken):
            path += "_"
        return path

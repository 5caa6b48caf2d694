"""Selections in a rebuilt graph, where an input does not stand in the needed order."""

from collections import Counter

import torch

from nr.method.layout import Layout
from nr.network.graph import Graph, Node, Pick, read_by
from nr.network.layers import Network
from nr.network.numbers import places


def graphs(model: Network) -> list[tuple[str, Graph]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Graph)]


def check_picks(model: Network, layout: Layout) -> None:
    """Raise ValueError if a container other than a graph would have to move channels."""
    prefixes = tuple(f"{name}." for name, _ in graphs(model))
    for name, _ in layout.needs:
        if not name.startswith(prefixes or ("\0",)):
            raise ValueError(
                f"{name}: reads channels in an order that its input does not have them in, as of"
                " groups or sums over a concatenation: put a 1x1 nr.ConvBN between them"
            )


class Selections:
    """The nodes of a graph that stay, with selections where an order is needed.

    Two selections in a row become one. A selection of everything in order is left out, unless
    others read its input too: what follows may change that in place.
    """

    def __init__(self, layout: Layout, graph: Graph, prefix: str):
        self.layout, self.graph, self.prefix = layout, graph, prefix
        self.readers = Counter(source for node in graph.nodes for source in node.inputs)
        self.known = {node.name: node for node in graph.nodes}
        self.nodes: dict[str, Node] = {}
        self.picks: dict[str, Pick] = {}
        self.names: dict[str, str] = {}  # of the node that now stands for another

    def rewritten(self) -> tuple[list[Node], dict[str, Pick]]:
        """The new nodes, and the selections among them."""
        for node in self.graph.nodes:
            sources = [self.source(node, k) for k in range(len(node.inputs))]
            inputs = [source for source in sources if source is not None]
            if inputs and self.is_pick(node):
                self.names[node.name] = inputs[0]
            elif inputs:
                self.nodes[node.name] = node._replace(inputs=tuple(inputs))
        ends = {[*self.nodes][-1]} if self.graph.outputs is None else self.graph.ends()
        nodes = read_by(list(self.nodes.values()), ends)
        kept = {node.name for node in nodes}
        return nodes, {name: pick for name, pick in self.picks.items() if name in kept}

    def is_pick(self, node: Node) -> bool:
        return isinstance(self.graph.module(node), Pick)

    def source(self, node: Node, k: int) -> str | None:
        """What a node reads instead of its input k; None if that is gone."""
        name, lists = self.prefix + node.name, self.layout.lists
        source, given = node.inputs[k], self.layout.plan.steps[name].inputs[k]
        if name not in lists or given not in lists:
            return None
        need = self.layout.needs.get((name, k), lists[name] if self.is_pick(node) else None)
        if need is not None:
            source, given = self.before(source, given)
            alone = self.readers[source] == 1 or not self.is_pick(node)
            if alone and all(map(torch.equal, need, lists[given])):
                need = None
        source = self.names.get(source, source)
        if need is None:
            return source
        own = node.name if self.is_pick(node) else f"{node.name}_pick{k}"
        self.picks[own] = Pick(map(places, need, lists[given]))
        self.nodes[own] = Node(own, None, (source,))
        return own

    def before(self, source: str, given: str) -> tuple[str, str]:
        """The node, and its step, that one or several selections select from."""
        while source in self.known and self.is_pick(self.known[source]):
            (given,) = self.layout.plan.steps[self.prefix + source].inputs
            (source,) = self.known[source].inputs
        return source, given

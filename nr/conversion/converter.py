"""The conversion: each traced node in order, then the outputs."""

from collections.abc import Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import fx, nn

from nr.conversion.making import classifier, passing
from nr.conversion.modules import ending
from nr.conversion.obstacles import Obstacles
from nr.conversion.operands import Blocked, Operands
from nr.conversion.operators import converted
from nr.conversion.tracing import Traced
from nr.conversion.words import first, has_tensor, in_place, inputs, readers, shape, word
from nr.network.graph import FLAT, Graph, Outputs
from nr.network.layers import Classifier, Network
from nr.network.plain import FixedSize

ENDS = (
    "the network gives this, and has to give the logits of an nn.Linear alone, maps, or several of"
    " them"
)


class Converter(Operands):
    """Makes nodes of traced ones; notes in ``obstacles`` what has no form in units."""

    def __init__(self, traced: Traced, obstacles: Obstacles):
        super().__init__(traced)
        self.obstacles = obstacles
        self.heads: dict[fx.Node, nn.Linear | nn.Conv2d] = {}
        self.features: set[fx.Node] = set()  # outputs that no head gives

    def network(self) -> Network:
        """The whole network; the last linear layer is the classifier."""
        outputs, nodes = self.traced.outputs, self.traced.nodes
        last = self.last(outputs)
        if last is None:
            self.find_heads(outputs)
        for node in nodes[1 : nodes.index(last[0]) if last else -1]:
            if has_tensor(node):
                self.values[node] = self.attempt(node)
        made = None if last is None else self.classifier(*last)
        ends = self.ends(outputs) if last is None else (None, None)
        self.prune({*pytree.tree_leaves(ends), self.nodes[-1].name})
        if self.traced.bound is not None:
            self.bind(FixedSize(self.traced.size, self.traced.bound))
        return Network(Graph(self.nodes, self.modules, *ends), made, self.traced.size)

    def attempt(self, node: fx.Node) -> object:
        """What ``node`` becomes, or a stand-in."""
        if self.obstacles.has(self.traced.name(node)):
            return self.stand_in(node)
        blocked: set[fx.Node] = set()
        while True:
            try:
                self.refuse_in_place(node)
                if node in self.heads:
                    return ending(self, node, self.heads[node])
                return converted(self, node)
            except Exception as error:  # ValueErrors, and what a call in an odd form may raise
                at = error.node if isinstance(error, Blocked) else node
                self.values[at] = self.block(node if at in blocked else at, error)
                if at is node or at in blocked:
                    return self.values[at]
                blocked.add(at)

    def block(self, node: fx.Node, error: Exception) -> Any:
        """Note what is in the way at ``node``, and return a stand-in."""
        text = str(error)
        if not isinstance(error, ValueError):
            text = f"is called in a form that nr does not know ({' '.join(text.split()):.100})"
        self.obstacles.add(self.traced.name(node), text)
        return self.stand_in(node)

    def refuse_in_place(self, node: fx.Node) -> None:
        changes = in_place(node, self.module(node))
        if changes and len(list(readers(first(node)))) > 1:
            raise ValueError("changes in place what others read too: use inplace=False")

    # The ends of the network.

    def last(self, outputs: tuple[Any, Any]) -> tuple[fx.Node, nn.Linear] | None:
        """The linear layer that gives the only output, the same in both modes; or None."""
        end, other = outputs
        while end is other and isinstance(end, fx.Node):
            module, before = self.module(end), inputs(end)
            if type(module) is nn.Linear and len(shape(end)) == 2:
                return end, module
            flat = isinstance(module, nn.Identity | nn.Flatten) or word(end) == "flatten"
            if not flat or len(before) != 1 or shape(end) != shape(before[0]):
                return None
            end = other = before[0]
        return None

    def classifier(self, last: fx.Node, layer: nn.Linear) -> Classifier:
        """The classifier, behind the features."""
        try:
            self.take(last)
            if not self.nodes:
                raise ValueError("there is no convolution before it: put nr's units there")
            name, window = self.whole_map(last)
        except ValueError as error:
            self.obstacles.add(self.traced.name(last), str(error))
            self.values[first(last)] = self.stand_in(first(last))
            name, window = self.whole_map(last)
        self.end_with(name)
        made = classifier(layer, window)
        made.name = str(last.target)
        return made

    def find_heads(self, outputs: object) -> None:
        """Find the layers that give the outputs; an output without such a layer is of features.

        Nothing but outputs reads a head.
        """
        ends = [end for end in pytree.tree_leaves(outputs) if end is not None]
        for end in ends:
            if not isinstance(end, fx.Node) or end.op in ("placeholder", "get_attr"):
                name = self.traced.name(end) if isinstance(end, fx.Node) else type(end).__name__
                self.obstacles.add(name, ENDS)
        ways = {end: _way(self.traced, end) for end in ends if isinstance(end, fx.Node)}
        while True:
            follow = {n for way in ways.values() for n, layer in way.items() if layer is None}
            read = [
                end
                for end, way in ways.items()
                if any(n.op != "output" and n not in follow for node in way for n in readers(node))
            ]
            if not read:
                break
            ways |= {end: {} for end in read}
        self.features = {end for end, way in ways.items() if not way}
        self.heads = {n: layer for way in ways.values() for n, layer in way.items() if layer}

    def ends(self, outputs: tuple[object, object]) -> tuple[Outputs, Outputs]:
        """The nodes of the outputs in eval and in train mode; None if they are the same."""
        names: dict[fx.Node, str] = {}

        def named(part: object) -> Outputs:
            if isinstance(part, Mapping):
                return {str(key): named(inner) for key, inner in part.items()}
            if isinstance(part, list | tuple):
                return [named(inner) for inner in part]
            if not isinstance(part, fx.Node):
                return None
            if part not in names:
                names[part] = self.end(part)
            return names[part]

        evaluation, training = map(named, outputs)
        return evaluation, training if training != evaluation else None

    def end(self, node: fx.Node) -> str:
        """The node of an output."""
        try:
            given, blocked = self.read(node), False
        except ValueError as error:
            given, blocked = self.block(node, error).name, True
        flat, name = len(shape(node)) == 2, self.traced.name(node)
        if blocked or node in self.features:
            like = next(iter(self.traced.modules[""].parameters()))
            made = passing(self.shapes[given][1], not flat, like)
            given = self.add(f"{name}_out", made, given, shape(node)).name
        return self.join(name, FLAT, [given], shape(node)).name if flat else given


def _way(traced: Traced, end: fx.Node) -> dict[fx.Node, nn.Linear | nn.Conv2d | None]:
    """What leads to ``end`` from layers without a norm; nothing if there are none."""
    found: dict[fx.Node, nn.Linear | nn.Conv2d | None] = {}
    open_ = [end]
    while open_:
        node = open_.pop()
        module = traced.module(node)
        if type(module) is nn.Linear or type(module) is nn.Conv2d:
            found[node] = module
            continue
        weighs = module is not None and [*module.parameters()]
        if weighs or node.op in ("placeholder", "get_attr"):
            return {}
        found[node] = None
        open_ += inputs(node)
    return found

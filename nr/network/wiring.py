"""The one walk over a network: each operation in order, with the channels it reads and makes.

Measuring, rebuilding, merging, rescaling, describing and counting are loops over what it finds. If
something cannot be treated exactly, it raises a ValueError with module, reason and remedy. It never
changes the network.
"""

import torch
from torch import nn

from nr.network.checks import (
    check_container,
    check_forward,
    check_network,
    check_unit,
    ends_in_unit,
    image_hw,
)
from nr.network.convolutions import ConvBN
from nr.network.graph import ADD, CAT, FLAT, IMAGE, MUL, Graph, Pick
from nr.network.holding import held
from nr.network.layers import Chain, Classifier, Concat, Head, Network, Residual, is_chain
from nr.network.numbers import count_to
from nr.network.operators import add, cat, flat, fork, multiply, pick, plain
from nr.network.plain import Size
from nr.network.record import At, Copies, Record, fit
from nr.network.steps import Wiring
from nr.network.ties import ties
from nr.network.units import Norm, Unit


def wiring(model: Network, image_size: int | Size | None = None) -> Wiring:
    """Walk ``model`` for images of ``image_size`` (H = W, or (H, W); None: the family's usual).

    Raises ValueError for a network that cannot be treated exactly.
    """
    check_network(model)
    size = image_hw(model.image_size if image_size is None else image_size)
    walk = _Walk(model)
    try:
        end = walk.module(model.features, "features", walk.start(first_channels(model), size), None)
    except Copies as copies:  # the first unit reads several copies of the image
        walk = _Walk(model)
        end = walk.module(model.features, "features", walk.start(copies.channels, size), None)
    if model.classifier is not None:
        walk.head(model.classifier, "classifier", end)
    found = ties(walk.makers, walk.steps, walk.count)
    source = count_to(walk.count)
    for layer in walk.makers:
        if isinstance(layer.unit, Norm):
            source[torch.cat(layer.numbers)] = torch.cat(layer.reads)
    makers = [
        layer._replace(
            fixed=layer.name in found.fixed,
            curved=walk.curved.get(layer.name),
            lifted=walk.lifted.get(layer.name),
            part=found.size(layer.numbers[0]),
        )
        for layer in walk.makers
    ]
    return Wiring(walk.steps, makers, found, source).holding(held(model))


def image_shape(model: Network) -> tuple[int, int, int]:
    """(C, H, W) of the images that the network is made for."""
    return wiring(model).image_channels, *image_hw(model.image_size)


class _Walk(Record):
    """Visits each module in its place, in the order of computation."""

    def module(self, module: nn.Module, name: str, at: At, branch: str | None) -> At:
        """Visit any module; returns the activation behind it."""
        if is_chain(module):  # a module that comes twice counts twice
            for child_name, child in zip(module._modules, module, strict=True):
                at = self.module(child, f"{name}.{child_name}", at, branch)
            return at
        for base in (ConvBN, Norm, Residual, Concat, Graph, Head, Classifier, Chain):
            if isinstance(module, base):
                check_forward(module, name, base)
                break
        match module:
            case ConvBN():
                return self.unit(module, name, at, branch)
            case Norm():
                return self.norm(module, name, at, branch)
            case Residual():
                return self.residual(module, name, at, branch)
            case Concat():
                return self.concat(module, name, at, branch)
            case Graph():
                return self.graph(module, name, at)
            case Classifier():
                return self.inner_head(module, name, at)
            case Pick():
                return pick(self, module, name, at)
        return plain(self, module, name, at)

    def unit(self, unit: ConvBN, name: str, at: At, branch: str | None) -> At:
        self.own(unit, name, "unit")
        check_unit(unit, name, self.streams)
        for conv in unit.convs:
            self.own(conv.weight, name, "weight")
        self.fits(name, unit.in_channels, at)
        if unit.group and IMAGE in at.step.sources:
            raise ValueError(
                f"{name}: its groups read the image, whose channels do not grow with them: put a"
                " 1x1 nr.ConvBN before it"
            )
        return self.maker(unit, name, at, unit.out_size(at.size), branch)

    def norm(self, norm: Norm, name: str, at: At, branch: str | None) -> At:
        self.own(norm, name, "norm")
        self.fits(name, norm.in_channels, at)
        return self.maker(norm, name, at, at.size, branch)

    def residual(self, module: Residual, name: str, at: At, branch: str | None) -> At:
        check_container(module, name, branch, ("branch", "shortcut"))
        fork, sides = at, []
        if module.branch is not None:
            sides.append(self.module(module.branch, f"{name}.branch", at, name))
            if not ends_in_unit(module.branch):
                raise ValueError(f"{name}: its branch has to end in an nr.ConvBN, before the sum")
        if module.shortcut is not None:
            at = self.module(module.shortcut, f"{name}.shortcut", at, None)
        return add(self, name, (*sides, at), fork.step.name)

    def concat(self, module: Concat, name: str, at: At, branch: str | None) -> At:
        check_container(module, name, branch, ("branch",))
        if module.branch is None:
            return at
        return cat(self, name, (at, self.module(module.branch, f"{name}.branch", at, name)))

    def graph(self, graph: Graph, name: str, at: At) -> At:
        """Every node is a step of its own; the image is what comes in."""
        values = {IMAGE: at}
        for node in graph.nodes:
            read, place = [values[n] for n in node.inputs], f"{name}.{node.name}"
            if node.op == ADD:
                values[node.name] = add(self, place, tuple(read), fork(self, read))
            elif node.op == CAT:
                values[node.name] = cat(self, place, tuple(read))
            elif node.op == MUL:
                values[node.name] = multiply(self, place, tuple(read))
            elif node.op == FLAT:
                values[node.name] = flat(self, place, *read)
            else:
                (at,) = read
                values[node.name] = self.module(graph.get_submodule(node.name), place, at, None)
        for end in graph.ends() if graph.outputs is not None else ():
            if not {*values[end].step.sources} <= self.heads:
                raise ValueError(f"{name}: its output {end} is not what an nr.Classifier gives")
        return values[graph.nodes[-1].name]

    def head(self, classifier: Classifier, name: str, at: At) -> At:
        """A classifier reads pooled features, or maps, of the right width."""
        if not self.makers:
            raise ValueError("features: there is no nr.ConvBN in them")
        if at.size != classifier.window and not isinstance(classifier, Head):
            height, width = classifier.window
            raise ValueError(
                f"features: end in maps of {at.size[0]}x{at.size[1]}, the classifier needs"
                f" {height}x{width}: end them with nn.AdaptiveAvgPool2d(1)"
            )
        self.refuse_classes(name, at)
        self.consume(at)
        self.fits(name, classifier.in_channels, at)
        for linear in classifier.linears:
            self.own(linear.weight, name, "weight")
        size = (1, 1)
        if isinstance(classifier, Head):
            size = fit(classifier.out_size(at.size), name, at.size)
        numbers, sources = (self.new(classifier.num_classes),) * self.streams, at.step.sources
        return self.step(name, classifier, (at.step.name,), numbers, sources, size)

    def inner_head(self, head: Classifier, name: str, at: At) -> At:
        """A classifier in a graph, which other nodes may read."""
        if not self.outputs:
            raise ValueError(f"{name}: a classifier stands only in an nr.Graph with outputs")
        self.heads.add(name)
        found = self.head(head, name, at)
        self.steps[name] = found.step._replace(sources=(name,))
        return found._replace(step=self.steps[name])


def first_channels(model: Network) -> int:
    """The input channels of the first unit, which reads the image."""
    units = (m for m in model.features.modules() if isinstance(m, Unit))
    return next((unit.in_channels[0] for unit in units), 1)

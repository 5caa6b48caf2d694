"""The one walk over a network: each operation in order, with the channels it reads and makes.

Measuring, rebuilding, merging, rescaling, describing shapes and counting MACs are all loops over
what it finds. What the walk cannot treat exactly is a ValueError naming module, reason and remedy;
it never changes the network.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.network.checks import (
    LARGEST_SIDE,
    check_container,
    check_forward,
    check_network,
    check_unit,
    ends_in_unit,
    image_hw,
)
from nr.network.graph import ADD, CAT, FLAT, IMAGE, MUL, Graph, Pick
from nr.network.layers import Chain, Classifier, Concat, Head, Network, Residual, is_chain
from nr.network.numbers import Lists, count_to
from nr.network.plain import KINDS, Size, effect
from nr.network.ties import Ties, ties
from nr.network.units import Conv, ConvBN, Norm, Streamed, Unit

Pending = dict[str, str]  # source -> the module that its channels have passed


class Step(NamedTuple):
    """One operation in its place: ``op`` is a module, or one of the words of nr.network.graph.

    ``inputs``: the steps that it reads. ``numbers``: the channels that it gives, one list a stream;
    after a sum those of its last operand stand for it; of a classifier the classes, the same of
    each stream. ``sources``: the steps that made them, of the last classifier what it reads.
    ``size``: its (H, W). ``fork``: of a sum, the step from which its operands part.
    """

    name: str
    op: nn.Module | str
    inputs: tuple[str, ...]
    numbers: Lists
    sources: tuple[str, ...]
    size: Size
    fork: str | None = None


class Layer(NamedTuple):
    """One unit, or one norm before a convolution, in its place.

    ``sources``: the steps that made what it reads, in this order. ``reads`` and ``numbers``: the
    channels that it reads and makes, one list a stream. ``size``: its output (H, W); ``windows``:
    how many windows (H, W) it computes, those of its input where it is transposed. ``branch``:
    the residual or dense container that can be dropped with it, in a tree of containers.
    ``fixed``: a sum adds it or parts from it, or it has no scale, so all its outputs count as
    live. ``curved`` and ``lifted``: the module, if any, that its output passes and that is not
    positively homogeneous, or that is not 0 at 0. ``part``: channels of it that live, die and grow
    together.
    """

    name: str
    unit: ConvBN | Norm
    sources: tuple[str, ...]
    reads: Lists
    numbers: Lists
    size: Size
    windows: Size
    branch: str | None
    fixed: bool = False
    curved: str | None = None
    lifted: str | None = None
    part: int = 1

    @property
    def pixels(self) -> int:
        return self.windows[0] * self.windows[1]

    @property
    def scaled(self) -> bool:
        """Whether its channels have scales, γ, of their own."""
        return not isinstance(self.unit, Conv)


@dataclass(frozen=True)
class Wiring:
    """The whole network: every step, and of these those that make channels, in order.

    ``ties``: what sums, groups and products join. ``source``: for each number the one that it
    scales, which is itself but for those of norms before convolutions.
    """

    steps: dict[str, Step]
    makers: list[Layer]
    ties: Ties
    source: Tensor

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.makers}

    @cached_property
    def layers(self) -> list[Layer]:
        """The units, which have weights."""
        return [layer for layer in self.makers if isinstance(layer.unit, ConvBN)]

    @cached_property
    def norms(self) -> list[Layer]:
        """The norms before convolutions."""
        return [layer for layer in self.makers if isinstance(layer.unit, Norm)]

    @cached_property
    def prunable(self) -> list[Layer]:
        """Those whose scales are measured and penalised."""
        return [layer for layer in self.makers if layer.scaled and not layer.fixed]

    @cached_property
    def heads(self) -> list[tuple[Step, Lists]]:
        """The classifiers, each with the channels that it reads."""
        found = [step for step in self.steps.values() if isinstance(step.op, Classifier)]
        return [(step, self.steps[step.inputs[0]].numbers) for step in found]

    def holding(self, names: Set[str]) -> "Wiring":
        """With all channels of these layers, and of those tied to them, fixed."""
        held = [self.by_name[name] for name in names if name in self.by_name]
        ties = self.ties.holding(
            [numbers for layer in held for numbers in layer.numbers], self.makers
        )
        makers = [layer._replace(fixed=layer.name in ties.fixed) for layer in self.makers]
        return replace(self, makers=makers, ties=ties)

    @property
    def image_channels(self) -> int:
        return len(self.steps[IMAGE].numbers[0])

    def canonical(self, numbers: Lists) -> Lists:
        """With one number for all that sums add to each other."""
        return tuple(self.ties.sum[stream] for stream in numbers)


def wiring(model: Network, image_size: int | Size | None = None) -> Wiring:
    """Walk ``model`` for images of ``image_size`` (H = W, or (H, W); None: the family's usual).

    Raises ValueError for a network that cannot be treated exactly.
    """
    check_network(model)
    size = image_hw(model.image_size if image_size is None else image_size)
    walk = _Walk(model)
    try:
        end = walk.module(model.features, "features", walk.start(first_channels(model), size), None)
    except _Copies as found:  # the first unit reads several copies of the image
        walk = _Walk(model)
        end = walk.module(model.features, "features", walk.start(found.channels, size), None)
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
    return Wiring(walk.steps, makers, found, source)


def image_shape(model: Network) -> tuple[int, int, int]:
    """(C, H, W) of the images that the network is made for."""
    return wiring(model).image_channels, *image_hw(model.image_size)


class _At(NamedTuple):
    """An activation: the step that gives it, and what it passed since its channels were made."""

    step: Step
    curved: Pending
    lifted: Pending

    @property
    def size(self) -> Size:
        return self.step.size


class _Walk:
    """What the walk has met so far."""

    def __init__(self, model: Network):
        self.streams, self.count = model.streams, 0
        self.outputs = model.classifier is None
        self.makers: list[Layer] = []
        self.steps: dict[str, Step] = {}
        self.curved: Pending = {}
        self.lifted: Pending = {}
        self.owners: dict[int, str] = {}  # id of a unit or a parameter -> where it was met
        self.heads: set[str] = set()  # the classifiers in a graph

    def start(self, channels: int, size: Size) -> _At:
        """The image, which all streams read."""
        return self.step(IMAGE, IMAGE, (), (self.new(channels),) * self.streams, (IMAGE,), size)

    def new(self, channels: int) -> Tensor:
        self.count += channels
        return count_to(channels) + self.count - channels

    def step(self, name, op, inputs, numbers, sources, size, fork=None) -> _At:
        """Write one step down; nothing has been passed since."""
        self.steps[name] = Step(name, op, inputs, numbers, sources, size, fork)
        return _At(self.steps[name], {}, {})

    def module(self, module: nn.Module, name: str, at: _At, branch: str | None) -> _At:
        """Walk any module; returns the activation after it."""
        for base, step in (
            (ConvBN, self.unit),
            (Norm, self.norm),
            (Residual, self.residual),
            (Concat, self.concat),
            (Graph, self.graph),
            (Head, self.inner_head),
            (Classifier, self.inner_head),
        ):
            if isinstance(module, base):
                check_forward(module, name, base)
                return step(module, name, at, branch)
        if is_chain(module):
            for child_name, child in module._modules.items():  # one that comes twice counts twice
                at = self.module(child, f"{name}.{child_name}", at, branch)
            return at
        if isinstance(module, Pick):
            return self.pick(module, name, at)
        if isinstance(module, Chain):
            check_forward(module, name, Chain)
        return self.plain(module, name, at)

    def unit(self, unit: ConvBN, name: str, at: _At, branch: str | None) -> _At:
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

    def norm(self, norm: Norm, name: str, at: _At, branch: str | None) -> _At:
        self.own(norm, name, "norm")
        self.fits(name, norm.in_channels, at)
        return self.maker(norm, name, at, at.size, branch)

    def maker(self, unit: ConvBN | Norm, name: str, at: _At, size: Size, branch: str | None) -> _At:
        """What makes channels of its own."""
        self.refuse_classes(name, at)
        self.consume(at)
        numbers = tuple(map(self.new, unit.out_channels))
        size = _fit(size, name, at.size)
        reads, sources = at.step.numbers, at.step.sources
        windows = at.size if getattr(unit, "transposed", False) else size
        self.makers.append(Layer(name, unit, sources, reads, numbers, size, windows, branch))
        return self.step(name, unit, (at.step.name,), numbers, (name,), size)

    def consume(self, *sides: _At) -> None:
        """What is read here has passed what it has passed for good."""
        for at in sides:
            self.curved = at.curved | self.curved
            self.lifted = at.lifted | self.lifted

    def residual(self, module: Residual, name: str, at: _At, branch: str | None) -> _At:
        check_container(module, name, branch, ("branch", "shortcut"))
        fork, sides = at, []
        if module.branch is not None:
            sides.append(self.module(module.branch, f"{name}.branch", at, name))
            if not ends_in_unit(module.branch):
                raise ValueError(f"{name}: its branch has to end in an nr.ConvBN, before the sum")
        if module.shortcut is not None:
            at = self.module(module.shortcut, f"{name}.shortcut", at, None)
        return self.sum(name, (*sides, at), fork.step.name)

    def sum(self, name: str, sides: tuple[_At, ...], fork: str | None) -> _At:
        """Both sides of a sum have the same shape; the last one's channels stand for it."""
        last = sides[-1]
        for at in sides:
            if IMAGE in at.step.sources:
                raise ValueError(
                    f"{name}: adds to the image, which cannot grow: put a unit before it"
                )
            self.same(name, at, last)
        if self.of_classes(name, sides):
            fork = None  # nothing of the features is added
        self.consume(*sides)
        inputs = tuple(at.step.name for at in sides)
        return self.step(name, ADD, inputs, last.step.numbers, last.step.sources, last.size, fork)

    def same(self, name: str, at: _At, last: _At) -> None:
        found = [(_text(side.step.numbers), *side.size) for side in (at, last)]
        if found[0] != found[1]:
            raise ValueError(
                f"{name}: its branch gives channels, H, W of {found[0]}, its shortcut {found[1]}:"
                " they have to be the same"
            )

    def concat(self, module: Concat, name: str, at: _At, branch: str | None) -> _At:
        check_container(module, name, branch, ("branch",))
        if module.branch is None:
            return at
        return self.cat(name, (at, self.module(module.branch, f"{name}.branch", at, name)))

    def cat(self, name: str, sides: tuple[_At, ...]) -> _At:
        at, *others = sides
        for end in others:
            if end.size != at.size:
                raise ValueError(
                    f"{name}: its branch gives H, W of {end.size}, its input has {at.size}: they"
                    " have to be the same"
                )
        self.of_classes(name, sides)
        numbers = tuple(map(torch.cat, zip(*(side.step.numbers for side in sides), strict=True)))
        sources = tuple(source for side in sides for source in side.step.sources)
        inputs = tuple(side.step.name for side in sides)
        found = self.step(name, CAT, inputs, numbers, sources, at.size)
        return found._replace(
            curved={k: v for side in sides for k, v in side.curved.items()},
            lifted={k: v for side in sides for k, v in side.lifted.items()},
        )

    def product(self, name: str, sides: tuple[_At, ...]) -> _At:
        """0 where either side is 0; nothing that is positively homogeneous."""
        self.of_classes(name, sides)
        at = next((side for side in sides if side.size != (1, 1)), sides[0])
        for side in sides:
            if side.size not in ((1, 1), at.size) or _text(side.step.numbers) != _text(
                at.step.numbers
            ):
                raise ValueError(f"{name}: multiplies activations of different shapes")
        inputs = tuple(side.step.name for side in sides)
        found = self.step(name, MUL, inputs, at.step.numbers, at.step.sources, at.size)
        sources = {source for side in sides for source in side.step.sources}
        curved = dict.fromkeys(sources, f"{name} (a product)")
        still = [side.lifted for side in sides]
        lifted = {} if not all(still) else {k: v for side in still for k, v in side.items()}
        self.consume(found._replace(curved=curved))
        return found._replace(curved=curved, lifted=lifted)

    def pick(self, pick: Pick, name: str, at: _At) -> _At:
        self.refuse_classes(name, at)
        numbers = tuple(
            given[torch.tensor(chosen, device="cpu")]
            for given, chosen in zip(at.step.numbers, pick.places, strict=True)
        )
        found = self.step(name, pick, (at.step.name,), numbers, at.step.sources, at.size)
        return found._replace(curved=at.curved, lifted=at.lifted)

    def graph(self, graph: Graph, name: str, at: _At, branch: str | None) -> _At:
        """Every node as its own step; the image is what comes in."""
        values = {IMAGE: at}
        for node in graph.nodes:
            read, place = [values[n] for n in node.inputs], f"{name}.{node.name}"
            if node.op == ADD:
                values[node.name] = self.sum(place, tuple(read), self.fork(read))
            elif node.op == CAT:
                values[node.name] = self.cat(place, tuple(read))
            elif node.op == MUL:
                values[node.name] = self.product(place, tuple(read))
            elif node.op == FLAT:
                values[node.name] = self.flat(place, *read)
            else:
                (at,) = read
                values[node.name] = self.module(graph.module(node), place, at, None)
        for end in graph.ends() if graph.outputs is not None else ():
            if not {*values[end].step.sources} <= self.heads:
                raise ValueError(f"{name}: its output {end} is not what an nr.Classifier gives")
        return values[graph.nodes[-1].name]

    def flat(self, name: str, at: _At) -> _At:
        """An output [B, C]."""
        if at.size != (1, 1):
            raise ValueError(f"{name}: flattens maps of {at.size[0]}x{at.size[1]} pixels, not 1x1")
        return self.step(name, FLAT, (at.step.name,), at.step.numbers, at.step.sources, at.size)

    def fork(self, sides: list[_At]) -> str | None:
        """The last step through which all that is read here has come."""
        order = {name: place for place, name in enumerate(self.steps)}
        common = {side.step.name for side in sides}
        while len(common) > 1:  # the latest one gives way to what it reads
            latest = max(common, key=order.__getitem__)
            common.remove(latest)
            common.update(self.steps[latest].inputs)
        return common.pop()

    def plain(self, module: nn.Module, name: str, at: _At) -> _At:
        kind = type(module).__name__
        if type(module) not in KINDS:
            hidden = [n for n, m in module.named_modules() if isinstance(m, Streamed)]
            if hidden:
                raise ValueError(
                    f"{name}: {kind} hides {hidden[0] or 'a unit'} from the walk: only nr.Chain,"
                    " nr.Residual and nr.Concat may hold nr's units"
                )
        if type(module) not in KINDS or module._parameters:
            for parameter in module.parameters():
                self.own(parameter, name, "parameter")
        try:
            found = effect(module, at.size)
        except ValueError as error:
            raise ValueError(f"{name}: {kind}: {error}") from error
        passed = dict.fromkeys(at.step.sources, f"{name} ({kind})")
        size, step = _fit(found.size, name, at.size), at.step
        after = self.step(name, module, (step.name,), step.numbers, step.sources, size)
        return after._replace(
            curved=at.curved if found.homogeneous else passed | at.curved,
            lifted=at.lifted if found.keeps_zero else passed | at.lifted,
        )

    def head(self, classifier: Classifier, name: str, at: _At) -> _At:
        """A classifier reads pooled features, or maps, of the right width."""
        if not self.makers:
            raise ValueError("features: there is no nr.ConvBN in them")
        maps = isinstance(classifier, Head)
        if at.size != classifier.window and not maps:
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
        size = _fit(classifier.out_size(at.size), name, at.size) if maps else (1, 1)
        numbers, sources = (self.new(classifier.num_classes),) * self.streams, at.step.sources
        return self.step(name, classifier, (at.step.name,), numbers, sources, size)

    def inner_head(self, head: Classifier, name: str, at: _At, branch: str | None) -> _At:
        """A classifier in a graph, which others may follow."""
        if not self.outputs:
            raise ValueError(f"{name}: a classifier stands only in an nr.Graph with outputs")
        self.heads.add(name)
        found = self.head(head, name, at)
        self.steps[name] = found.step._replace(sources=(name,))
        return found._replace(step=self.steps[name])

    def of_classes(self, name: str, sides: tuple[_At, ...]) -> bool:
        """Whether what is joined is of classes; ValueError where only some of it is."""
        found = {source in self.heads for side in sides for source in side.step.sources}
        if len(found) > 1:
            raise ValueError(f"{name}: joins features with what a classifier gives")
        return found == {True}

    def refuse_classes(self, name: str, at: _At) -> None:
        if not self.heads.isdisjoint(at.step.sources):
            raise ValueError(
                f"{name}: reads what {at.step.sources[0]} gives, a classifier, whose classes do not"
                " grow: only plain modules, sums and concatenations may follow one"
            )

    def fits(self, name: str, in_channels: tuple[int, ...], at: _At) -> None:
        copies = len(at.step.sources)
        if not self.makers and len(at.step.numbers[0]) == copies * in_channels[0] > in_channels[0]:
            if in_channels[0] % copies:
                raise ValueError(f"{name}: reads {copies} copies of the image, unevenly")
            raise _Copies(in_channels[0] // copies)
        if tuple(map(len, at.step.numbers)) != tuple(in_channels):
            raise ValueError(
                f"{name}: reads {' + '.join(map(str, in_channels))} channels, but"
                f" {', '.join(at.step.sources)} give {_text(at.step.numbers)}"
            )

    def own(self, thing: object, name: str, what: str) -> None:
        """Refuse a unit or a parameter that is used in two places."""
        other = self.owners.setdefault(id(thing), name)
        if other != name:
            raise ValueError(
                f"{name}: its {what} is that of {other} too: each place needs one of its own"
            )


def first_channels(model: Network) -> int:
    """The input channels of the first unit, which reads the image."""
    units = (m for m in model.features.modules() if isinstance(m, Unit))
    return next((unit.in_channels[0] for unit in units), 1)


class _Copies(Exception):
    """The first unit reads several copies of an image of so many ``channels``."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels


def _fit(size: Size, name: str, before: Size) -> Size:
    """``size``, unless it is empty or absurd."""
    if not all(0 < side <= LARGEST_SIDE for side in size):
        raise ValueError(
            f"{name}: makes maps of {size[0]}x{size[1]} of {before[0]}x{before[1]}: another image"
            " size is needed"
        )
    return size


def _text(lists: Lists) -> str:
    return " + ".join(str(len(numbers)) for numbers in lists)

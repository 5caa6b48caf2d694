"""The one walk over a network: each ConvBN in order, with what it reads, after strict checks.

Measuring, rebuilding, rescaling, describing shapes and counting MACs are all loops over this list.
What the walk cannot treat exactly is a ValueError naming module, reason and remedy; it never
changes the network.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.checks import (
    LARGEST_SIDE,
    check_container,
    check_forward,
    check_network,
    check_unit,
    ends_in_unit,
    image_hw,
)
from nr.layers import STREAM_MODULES, Chain, Classifier, Concat, Network, Residual, is_chain
from nr.plain import KINDS, Size, effect
from nr.ties import ties
from nr.units import Conv, ConvBN

IMAGE = "image"  # the source that the stem reads


class Layer(NamedTuple):
    """One ConvBN in its place.

    ``sources``: the layers whose outputs, concatenated in this order, are its input; a residual
    sum is named by its shortcut, whose channels stand for the sum's. ``size``: its output (H, W).
    ``branch``: the residual or dense container that can be dropped with it, None in a chain.
    ``fixed``: a Residual reads it or adds it, or it has no batch norm, so all its outputs count as
    live. ``curved`` and ``lifted``: the module, if any, that its output passes and that is not
    positively homogeneous, or that is not 0 at 0. ``part`` and ``tie``: see nr.ties.
    """

    name: str
    unit: ConvBN
    sources: tuple[str, ...]
    size: Size
    branch: str | None
    fixed: bool = False
    curved: str | None = None
    lifted: str | None = None
    part: int = 1
    tie: str = ""

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


class Wiring(NamedTuple):
    """The layers in order of computation, the sources of the classifier, and the residual sums.

    ``sums``: name of a Residual that has its branch -> sources of it and of its shortcut.
    """

    layers: list[Layer]
    head: tuple[str, ...]
    sums: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def wiring(model: Network, image_size: int | Size | None = None) -> Wiring:
    """Walk ``model`` for images of ``image_size`` (H = W, or (H, W); None: the family's usual).

    Raises ValueError for a network that cannot be treated exactly.
    """
    check_network(model)
    walk = _Walk(model.streams)
    at = _At((IMAGE,), image_hw(model.image_size if image_size is None else image_size))
    at = walk.module(model.features, "features", at, None)
    walk.head(model.classifier, at)
    fixed, part, tie = ties(walk.layers, walk.sums, at.sources, walk.fixed)
    layers = [
        layer._replace(
            part=part[layer.name],
            tie=tie[layer.name],
            fixed=layer.name in fixed,
            curved=walk.curved.get(layer.name),
            lifted=walk.lifted.get(layer.name),
        )
        for layer in walk.layers
    ]
    return Wiring(layers, at.sources, walk.sums)


def image_channels(layers: list[Layer]) -> int:
    """Channels of the image, from the stem, which reads nothing else."""
    return layers[0].unit.in_channels[0] // len(layers[0].sources)


def image_shape(model: Network) -> tuple[int, int, int]:
    """(C, H, W) of the images that the network is made for."""
    return image_channels(wiring(model).layers), *image_hw(model.image_size)


class _At(NamedTuple):
    """An activation: the layers that it comes from and its (H, W)."""

    sources: tuple[str, ...]
    size: Size


class _Walk:
    """What the walk has met so far."""

    def __init__(self, streams: int):
        self.streams = streams
        self.layers: list[Layer] = []
        self.sums: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self.widths: dict[str, tuple[int, ...]] = {}
        self.fixed: set[str] = set()
        self.curved: dict[str, str] = {}
        self.lifted: dict[str, str] = {}
        self.owners: dict[int, str] = {}  # id of a unit or a parameter -> where it was met

    def module(self, module: nn.Module, name: str, at: _At, branch: str | None) -> _At:
        """Walk any module; returns the activation after it."""
        for base, step in (
            (ConvBN, self.unit),
            (Residual, self.residual),
            (Concat, self.concat),
        ):
            if isinstance(module, base):
                check_forward(module, name, base)
                return step(module, name, at, branch)
        if is_chain(module):
            for child_name, child in module._modules.items():  # one that comes twice counts twice
                at = self.module(child, f"{name}.{child_name}", at, branch)
            return at
        if isinstance(module, Chain):
            check_forward(module, name, Chain)
        return self.plain(module, name, at)

    def unit(self, unit: ConvBN, name: str, at: _At, branch: str | None) -> _At:
        self.own(unit, name, "unit")
        check_unit(unit, name, self.streams)
        for conv in unit.convs:
            self.own(conv.weight, name, "weight")
        if not self.widths:
            count, rest = divmod(unit.in_channels[0], len(at.sources))
            if rest:
                raise ValueError(f"{name}: reads {len(at.sources)} copies of the image, unevenly")
            self.widths[IMAGE] = (count,) * self.streams
        self.fits(name, unit.in_channels, at.sources)
        if unit.group and (len(at.sources) > 1 or IMAGE in at.sources):
            what = "the image" if IMAGE in at.sources else "a concatenation"
            raise ValueError(
                f"{name}: its groups read {what}, whose channels do not grow with them: put a 1x1"
                " nr.ConvBN before it"
            )
        if isinstance(unit, Conv):
            self.fixed.add(name)
        window = (unit.padding, unit.kernel_size, unit.stride)
        size = tuple((side + 2 * window[0] - window[1]) // window[2] + 1 for side in at.size)
        self.widths[name] = unit.out_channels
        self.layers.append(Layer(name, unit, at.sources, _fit(size, name, at.size), branch))
        return _At((name,), size)

    def residual(self, module: Residual, name: str, at: _At, branch: str | None) -> _At:
        check_container(module, name, branch, ("branch", "shortcut"))
        end = None
        self.fixed.update(at.sources)
        if module.branch is not None:
            end = self.module(module.branch, f"{name}.branch", at, name)
            if not ends_in_unit(module.branch):
                raise ValueError(f"{name}: its branch has to end in an nr.ConvBN, before the sum")
        if module.shortcut is not None:
            at = self.module(module.shortcut, f"{name}.shortcut", at, None)
        if IMAGE in at.sources:
            raise ValueError(f"{name}: adds to the image, which cannot grow: put a unit before it")
        if end is not None:
            self.check_sum(name, end, at)
            self.fixed.update(end.sources)
            self.sums[name] = (end.sources, at.sources)
        self.fixed.update(at.sources)
        return at

    def check_sum(self, name: str, end: _At, at: _At) -> None:
        """Both sides of a sum have the same shape."""
        found = [
            (_text(gather_widths(self.widths, side.sources)), *side.size) for side in (end, at)
        ]
        if found[0] != found[1]:
            raise ValueError(
                f"{name}: its branch gives channels, H, W of {found[0]}, its shortcut {found[1]}:"
                " they have to be the same"
            )

    def concat(self, module: Concat, name: str, at: _At, branch: str | None) -> _At:
        check_container(module, name, branch, ("branch",))
        if module.branch is None:
            return at
        end = self.module(module.branch, f"{name}.branch", at, name)
        if end.size != at.size:
            raise ValueError(
                f"{name}: its branch gives H, W of {end.size}, its input has {at.size}: they have"
                " to be the same"
            )
        return _At(at.sources + end.sources, at.size)

    def plain(self, module: nn.Module, name: str, at: _At) -> _At:
        kind = type(module).__name__
        if type(module) not in KINDS:
            hidden = [n for n, m in module.named_modules() if isinstance(m, STREAM_MODULES)]
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
        for source in at.sources:
            if not found.homogeneous:
                self.curved.setdefault(source, f"{name} ({kind})")
            if not found.keeps_zero:
                self.lifted.setdefault(source, f"{name} ({kind})")
        return _At(at.sources, _fit(found.size, name, at.size))

    def head(self, classifier: Classifier, at: _At) -> None:
        """The classifier reads pooled features of the right width."""
        if not self.layers:
            raise ValueError("features: there is no nr.ConvBN in them")
        if at.size != (1, 1):
            raise ValueError(
                f"features: end in maps of {at.size[0]}x{at.size[1]}, the classifier needs 1x1:"
                " end them with nn.AdaptiveAvgPool2d(1)"
            )
        self.fits("classifier", classifier.in_channels, at.sources)
        for linear in classifier.linears:
            self.own(linear.weight, "classifier", "weight")

    def fits(self, name: str, in_channels: tuple[int, ...], sources: tuple[str, ...]) -> None:
        given = gather_widths(self.widths, sources)
        if given != tuple(in_channels):
            raise ValueError(
                f"{name}: reads {_text(in_channels)} channels, but {', '.join(sources)} give"
                f" {_text(given)}"
            )

    def own(self, thing: object, name: str, what: str) -> None:
        """Refuse a unit or a parameter that is used in two places."""
        other = self.owners.setdefault(id(thing), name)
        if other != name:
            raise ValueError(
                f"{name}: its {what} is that of {other} too: each place needs one of its own"
            )


def _fit(size: Size, name: str, before: Size) -> Size:
    """``size``, unless it is empty or absurd."""
    if not all(0 < side <= LARGEST_SIDE for side in size):
        raise ValueError(
            f"{name}: makes maps of {size[0]}x{size[1]} of {before[0]}x{before[1]}: another image"
            " size is needed"
        )
    return size


def _text(widths: tuple[int, ...]) -> str:
    return " + ".join(map(str, widths))


def gather_widths(widths: Mapping[str, tuple[int, ...]], sources: tuple[str, ...]) -> tuple:
    """Input width of each stream: the sum over the concatenated sources."""
    return tuple(map(sum, zip(*(widths[source] for source in sources), strict=True)))


def gather(vectors: Mapping[str, tuple[Tensor, ...]], sources: tuple[str, ...]) -> tuple:
    """One vector [C_in] a stream, concatenated over the sources."""
    columns = zip(*(vectors[source] for source in sources), strict=True)
    return tuple(torch.cat(column) for column in columns)

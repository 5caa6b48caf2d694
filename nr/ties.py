"""Which layers share their widths, through a residual sum or a grouped convolution.

What a sum reads or adds is fixed: all live. A group lives, dies and grows as a whole, together
with the input channels that it reads, since nothing else reads them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import gcd, lcm
from typing import NamedTuple

Sums = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


class Ties(NamedTuple):
    """``fixed``: the layers all of whose outputs count as live.

    ``part``: channels of a layer that live, die and grow together. ``tie``: the first of the
    layers that are cut into the same number of parts, each of which is one across all of them.
    """

    fixed: set[str]
    part: dict[str, int]
    tie: dict[str, str]


def ties(layers: list, sums: Sums, head: tuple[str, ...], fixed: set[str]) -> Ties:
    """What the sums and groups of the walked ``layers`` tie; ``fixed``: by the sums alone."""
    grouped = [(layer.sources[0], layer) for layer in layers if layer.unit.group]
    found = Ties(
        fixed | set(_shared(layers, grouped, head)),
        {layer.name: 1 for layer in layers},
        {layer.name: layer.name for layer in layers},
    )
    order = {layer.name: place for place, layer in enumerate(layers)}
    aligned = [(source, layer.name) for source, layer in grouped] + list(_aligned(layers, sums))
    before = None
    while found != before:
        before = Ties(found.fixed.copy(), found.part.copy(), found.tie.copy())
        for source, layer in grouped:
            _fit_groups(found.part, source, layer)
            if found.fixed & {source, layer.name}:
                found.fixed.update((source, layer.name))
        for a, b in aligned[len(grouped) :]:
            found.part[a] = found.part[b] = lcm(found.part[a], found.part[b])
        for a, b in aligned:
            found.tie[a] = found.tie[b] = min(found.tie[a], found.tie[b], key=order.get)
    return found


def _shared(layers: list, grouped: list, head: tuple[str, ...]) -> Iterator[str]:
    """The sources of grouped convolutions that others read too, or that others can outlive."""
    readers = Counter(source for layer in layers for source in layer.sources) + Counter(head)
    branch = {layer.name: layer.branch for layer in layers}
    for source, layer in grouped:
        if readers[source] > 1 or branch[source] != layer.branch:
            yield source


def _aligned(layers: list, sums: Sums) -> Iterator[tuple[str, str]]:
    """The layers that a sum adds to each other."""
    widths = {layer.name: layer.unit.out_channels for layer in layers}
    for branch, shortcut in sums.values():
        for a, b in zip(branch, shortcut, strict=False):
            if widths[a] == widths[b]:
                yield a, b


def _fit_groups(part: dict[str, int], source: str, layer) -> None:
    """Make the parts of both sides of a grouped convolution the same whole groups."""
    i, o = layer.unit.group
    count = lcm(part[source] // gcd(part[source], i), part[layer.name] // gcd(part[layer.name], o))
    part[source], part[layer.name] = i * count, o * count

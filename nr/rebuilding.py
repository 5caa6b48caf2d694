"""New widths and a form -> fresh units beside the old ones, and the swap that cannot fail."""

from collections.abc import Iterable, Mapping

import torch

from nr.layers import Classifier, Network
from nr.units import ConvBN
from nr.wiring import IMAGE, Layer, Wiring, gather_widths


def remade(
    model: Network, plan: Wiring, widths: Mapping[str, tuple[int, ...]], form: str
) -> tuple[dict[str, ConvBN], Classifier]:
    """Fresh units by name and a fresh classifier of these widths; the model keeps its own.

    ``widths``: of the image and of every layer that stays, one a stream.
    """

    def inputs(sources: tuple[str, ...]) -> tuple[int, ...]:
        return gather_widths(widths, tuple(source for source in sources if source in widths))

    units = {
        layer.name: layer.unit.remade(
            form_of(layer, form), inputs(layer.sources), widths[layer.name]
        )
        for layer in plan.layers
        if layer.name in widths
    }
    weights = [conv.weight for layer in plan.layers for conv in layer.unit.convs]
    if any(not weight.is_contiguous() for weight in weights):
        for unit in units.values():
            unit.to(memory_format=torch.channels_last)
    return units, model.classifier.remade(inputs(plan.head))


def form_of(layer: Layer, form: str) -> str:
    """No mode has cross blocks in the stem, which reads the image twice, or between groups."""
    alone = IMAGE in layer.sources or layer.unit.group
    return "removed" if form != "plain" and alone else form


def swap(
    model: Network,
    layers: list[Layer],
    units: Mapping[str, ConvBN],
    classifier: Classifier,
    dropped: Iterable[str] = (),
) -> None:
    """Put everything that was made in its place: nothing here can fail."""
    for layer in layers:
        if layer.name in units:
            layer.unit.adopt(units[layer.name])
    for name in dropped:
        model.get_submodule(name).branch = None
    model.classifier.adopt(classifier)

"""New widths and a form -> fresh units beside the old ones, and the swap that cannot fail."""

import gc
from collections.abc import Iterable, Mapping, Set
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nr.layers import Classifier, Network
from nr.units import ConvBN
from nr.wiring import IMAGE, Layer, Wiring, gather_widths

CLASSIFIER = "classifier"  # its name in a network
GONE = "nr_gone"  # attribute of a parameter that a rebuild took out of its network


def remade(
    model: Network,
    plan: Wiring,
    widths: Mapping[str, tuple[int, ...]],
    form: str,
    apart: Set[str] = frozenset(),
) -> tuple[dict[str, ConvBN], Classifier]:
    """Fresh units by name and a fresh classifier of these widths; the model keeps its own.

    ``widths``: of the image and of every layer that stays, one a stream. ``apart``: the layers
    whose second stream is not connected to the first, and trains.
    """

    def inputs(sources: tuple[str, ...]) -> tuple[int, ...]:
        return gather_widths(widths, tuple(source for source in sources if source in widths))

    units = {
        layer.name: layer.unit.remade(
            form_of(layer, form, apart), inputs(layer.sources), widths[layer.name]
        )
        for layer in plan.layers
        if layer.name in widths
    }
    weights = [conv.weight for layer in plan.layers for conv in layer.unit.convs]
    if any(not weight.is_contiguous() for weight in weights):
        for unit in units.values():
            unit.to(memory_format=torch.channels_last)
    classifier = model.classifier.remade(inputs(plan.head))
    fresh = {name: (*unit.convs[1:], *unit.norms[1:]) for name, unit in units.items()}
    fresh[CLASSIFIER] = classifier.linears[1:]
    for name in apart & fresh.keys():
        for module in fresh[name]:
            module.requires_grad_(True)
    return units, classifier


def form_of(layer: Layer, form: str, apart: Set[str]) -> str:
    """No mode has cross blocks in the stem, which reads the image twice, or between groups."""
    alone = IMAGE in layer.sources or layer.unit.group or layer.name in apart
    return "removed" if form != "plain" and alone else form


def frozen(model: Network, plan: Wiring) -> list[str]:
    """The layers of ``plan`` whose weights are frozen, and the classifier if its are."""
    weights = {layer.name: layer.unit.convs[0].weight for layer in plan.layers}
    weights[CLASSIFIER] = model.classifier.linears[0].weight
    return [name for name, weight in weights.items() if not weight.requires_grad]


def kept_whole(plan: Wiring, names: Set[str]) -> Wiring:
    """``plan`` with all channels of the layers ``names``, and of those tied to them, fixed."""
    held = {layer.tie for layer in plan.layers if layer.name in names}
    layers = [layer._replace(fixed=layer.fixed or layer.tie in held) for layer in plan.layers]
    return plan._replace(layers=layers)


def swap(
    model: Network,
    layers: list[Layer],
    units: Mapping[str, ConvBN],
    classifier: Classifier,
    dropped: Iterable[str] = (),
) -> None:
    """Put everything that was made in its place: nothing here can fail."""
    old = list(model.parameters())
    for layer in layers:
        if layer.name in units:
            layer.unit.adopt(units[layer.name])
    for name in dropped:
        model.get_submodule(name).branch = None
    model.classifier.adopt(classifier)
    retire(model, old)


def retire(model: Network, old: list[nn.Parameter]) -> None:
    """Have those of the parameters ``old`` noticed that ``model`` no longer has.

    The next step of an optimizer that holds one, and the next pass through a DDP wrapper of the
    network, which synchronises them, is a RuntimeError.
    """
    kept = set(map(id, model.parameters()))
    for parameter in old:
        if id(parameter) not in kept:
            setattr(parameter, GONE, True)
    _watch_optimizers()
    if dist.is_available() and dist.is_initialized():
        for thing in gc.get_objects():  # a network does not know what wraps it
            wraps = DistributedDataParallel in type(thing).__mro__
            if wraps and any(module is model for module in thing.modules()):
                thing.register_forward_pre_hook(_refuse_old_wrapper)


@cache
def _watch_optimizers() -> None:
    """Look at the parameters of every optimizer before its steps, from the first rebuild on."""
    register_optimizer_step_pre_hook(_refuse_gone)


@torch.compiler.disable  # a step may be compiled, around it
def _refuse_gone(optimizer: Optimizer, *_) -> None:
    if any(GONE in vars(p) for group in optimizer.param_groups for p in group["params"]):
        raise RuntimeError(
            f"{type(optimizer).__name__}: the network was rebuilt after this optimizer was made,"
            " which steps on parameters that are no longer its own: make a new one"
        )


def _refuse_old_wrapper(wrapper: nn.Module, *_) -> None:
    raise RuntimeError(
        f"{type(wrapper).__name__}: its network was rebuilt after it was wrapped, and the new"
        " parameters would not be synchronised: wrap it anew, in every process"
    )

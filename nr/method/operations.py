"""The operations of a network, one after the other, with their widths: to be timed."""

import copy
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nr.method.cutting import Cut
from nr.method.rebuilding import form_of
from nr.network.convolutions import ConvBN, dense, gate
from nr.network.graph import ADD, CAT, MUL, Pick
from nr.network.layers import Classifier, Head, Network, Residual
from nr.network.norms import norm_like
from nr.network.plain import Size
from nr.network.steps import Step, Wiring
from nr.network.units import FORMS, Unit
from nr.network.wiring import wiring

Shapes = list[tuple[int, ...]]
Work = Callable[..., object]


class Operation(NamedTuple):
    """``name``: everything that its time depends on but ``widths``, its channels or groups.

    ``make``: (widths, batch) -> what is called, and the shapes of its inputs.
    """

    name: str
    widths: tuple[int, ...]
    make: Callable[[tuple[int, ...], int], tuple[Work, Shapes]]


class _Lengths(NamedTuple):
    """Of one step: its form, and the widths (one a stream) that it reads, by input, and gives."""

    form: str
    reads: tuple[tuple[int, ...], ...]
    gives: tuple[int, ...]


def operations(model: Network, image_size: int | Size | None = None) -> Iterator[Operation]:
    """Those of a network as it is."""
    wired = wiring(model, image_size)
    lengths = {name: tuple(map(len, step.numbers)) for name, step in wired.steps.items()}
    modules = dict(model.named_modules())
    for name, step in wired.steps.items():
        reads = tuple(lengths[source] for source in step.inputs)
        form = step.op.form if isinstance(step.op, Unit) else ""
        yield from _of_step(modules, wired, step, _Lengths(form, reads, lengths[name]))


def operations_after(model: Network, cut: Cut) -> Iterator[Operation]:
    """Those of a network as a cut leaves it."""
    wired, layout, modules = cut.wired, cut.layout, dict(model.named_modules())
    for name, lists in layout.lists.items():
        step, form = wired.steps[name], ""
        if name in wired.by_name:
            form = form_of(wired.by_name[name], cut.form, wired.held.freeze)
        reads = tuple(
            tuple(map(len, layout.needs.get((name, k), layout.lists[source])))
            for k, source in enumerate(step.inputs)
            if source in layout.lists
        )
        if isinstance(step.op, Pick):
            continue  # as part of what is needed
        yield from _of_step(modules, wired, step, _Lengths(form, reads, tuple(map(len, lists))))
    for (name, k), lists in layout.needs.items():
        source = wired.steps[wired.steps[name].inputs[k]]
        for numbers in lists:
            yield _pick(len(numbers), source.size)


def _of_step(
    modules: dict[str, nn.Module], wired: Wiring, step: Step, lengths: _Lengths
) -> Iterator[Operation]:
    op, size = step.op, step.size
    before = wired.steps[step.inputs[0]].size if step.inputs else size
    if isinstance(op, Unit):
        yield from _of_unit(op, before, size, lengths)
    elif isinstance(op, Classifier):
        for width in lengths.reads[0]:
            yield _classifier(op, width, before)
    elif isinstance(op, Pick):
        for width in lengths.gives:
            yield _pick(width, size)
    elif isinstance(op, nn.Module):
        for width in lengths.gives:
            yield _module(f"{op} {_text(before)}", op, width, before)
    elif op in (ADD, CAT, MUL):
        inside = modules.get(step.name) if op == ADD else None
        relu = isinstance(inside, Residual) and inside.activation is not None
        for stream, width in enumerate(lengths.gives):
            parts = [reads[stream] for reads in lengths.reads]
            yield from _joining(op, width, len(parts), size, relu)


def _of_unit(unit: Unit, before: Size, size: Size, lengths: _Lengths) -> Iterator[Operation]:
    (reads, *_), makes = lengths.reads, lengths.gives
    if isinstance(unit, ConvBN):
        for ins, outs in FORMS[lengths.form]:
            widths = sum(reads[i] for i in ins), sum(makes[o] for o in outs)
            yield _convolution(unit, widths, before)
        if lengths.form == "full":
            yield from _joining(CAT, sum(reads), 2, before, False)
        for width in makes if lengths.form == "full" else ():
            yield _called("dense", width, size, lambda x: dense(x[:, : x.shape[1] // 2]), (2,))
        for width in makes if lengths.form == "attention" else ():
            yield _called("gate", width, size, _gated, (2,))
    norm = unit.norms[0]
    name = f"{type(norm).__name__} {'no bias ' * (getattr(norm, 'bias', 0) is None)}{_text(size)}"
    for width in makes:
        yield Operation(
            name,
            (width,),
            lambda widths, batch: (norm_like(norm, *widths), [(batch, *widths, *size)]),
        )


def _gated(x: Tensor) -> Tensor:
    """A gate of both halves of [B, 2C, H, W]."""
    own, cross = x.chunk(2, dim=1)
    return gate(own, cross)


def _convolution(unit: ConvBN, widths: tuple[int, int], size: Size) -> Operation:
    """A unit's convolution of so many channels, without its norm."""
    per = unit.group or (1, 1)
    counts = (widths[1] // per[1],) if unit.group else widths
    settings = {**unit.options(), "stride": unit.stride, "transposed": unit.transposed}
    words = " ".join(f"{n} {v}" for n, v in settings.items() if n != "bias")

    def make(counts: tuple[int, ...], batch: int) -> tuple[Work, Shapes]:
        ins, outs = counts[0] * per[0], counts[-1] * per[1]
        alone = copy.copy(unit)
        alone._modules = {}
        alone.build("plain", (ins,), (outs,))
        alone.add_module("norms", nn.ModuleList([nn.Identity()]))
        return _First(alone), [(batch, ins, *size)]

    return Operation(f"convolution {words} group {unit.group} {_text(size)}", counts, make)


class _First(nn.Module):
    """A unit of one stream, called with a tensor."""

    def __init__(self, unit: Unit):
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return self.unit((x,))[0]


def _module(name: str, module: nn.Module, width: int, size: Size) -> Operation:
    def make(widths: tuple[int, ...], batch: int) -> tuple[Work, Shapes]:
        return copy.deepcopy(module), [(batch, *widths, *size)]

    return Operation(" ".join(name.split()), (width,), make)


def _classifier(head: Classifier, width: int, size: Size) -> Operation:
    def make(widths: tuple[int, ...], batch: int) -> tuple[Work, Shapes]:
        alone = head.remade(widths)
        shape = (batch, *widths, *size)
        return (alone.linears[0] if isinstance(head, Head) else _Flat(alone)), [shape]

    return Operation(f"{type(head).__name__} {head.num_classes} {_text(size)}", (width,), make)


class _Flat(nn.Module):
    """A classifier of one stream, called with a tensor."""

    def __init__(self, head: Classifier):
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.each([x.flatten(1)])[0]


def _pick(width: int, size: Size) -> Operation:
    def work(x: Tensor) -> Tensor:
        return torch.index_select(x, 1, torch.arange(x.shape[1], device=x.device))

    return _called("selection", width, size, work, (1,))


def _joining(op: str, width: int, count: int, size: Size, relu: bool) -> Iterator[Operation]:
    """A sum, product or concatenation of so many activations that gives ``width`` channels."""
    if op == CAT and count > 1:
        yield _called("cat", (width + 1) // 2, size, lambda x, y: torch.cat((x, y), dim=1), (1, 1))
    for _ in range(count - 1 if op == ADD else 0):
        if relu:
            yield _called("add and relu", width, size, lambda x, y: F.relu_(x.add_(y)), (1, 1))
        else:
            yield _called("add", width, size, operator.add, (1, 1))
    for _ in range(count - 1 if op == MUL else 0):
        yield _called("product", width, size, lambda x, y: x * y[:, :, :1, :1], (1, 1))


def _called(name: str, width: int, size: Size, work: Work, times: tuple[int, ...]) -> Operation:
    """A function of maps of so many times the width."""
    return Operation(
        f"{name} {_text(size)}",
        (width,),
        lambda widths, batch: (work, [(batch, n * widths[0], *size) for n in times]),
    )


def _text(size: Size) -> str:
    return f"at {size[0]}x{size[1]}"

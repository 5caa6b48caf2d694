"""Steps that are no units: sums, concatenations, products, selections, plain modules."""

import torch
from torch import nn

from nr.network.graph import ADD, CAT, FLAT, IMAGE, MUL, Pick
from nr.network.plain import KINDS, effect
from nr.network.record import At, Record, fit, text
from nr.network.units import Streamed


def add(record: Record, name: str, sides: tuple[At, ...], fork: str | None) -> At:
    """Both sides of a sum have the same shape; the channels of the last one stand for it."""
    last = sides[-1]
    for at in sides:
        if IMAGE in at.step.sources:
            raise ValueError(f"{name}: adds to the image, which cannot grow: put a unit before it")
        _same(name, at, last)
    if record.of_classes(name, sides):
        fork = None  # nothing of the features is added
    record.consume(*sides)
    inputs = tuple(at.step.name for at in sides)
    return record.step(name, ADD, inputs, last.step.numbers, last.step.sources, last.size, fork)


def _same(name: str, at: At, last: At) -> None:
    found = [(text(side.step.numbers), *side.size) for side in (at, last)]
    if found[0] != found[1]:
        raise ValueError(
            f"{name}: its branch gives channels, H, W of {found[0]}, its shortcut {found[1]}:"
            " they have to be the same"
        )


def fork(record: Record, sides: list[At]) -> str | None:
    """The last step that everything read here has come through."""
    order = {name: place for place, name in enumerate(record.steps)}
    common = {side.step.name for side in sides}
    while len(common) > 1:  # the latest one gives way to what it reads
        latest = max(common, key=order.__getitem__)
        common.remove(latest)
        common.update(record.steps[latest].inputs)
    return common.pop()


def cat(record: Record, name: str, sides: tuple[At, ...]) -> At:
    at, *others = sides
    for end in others:
        if end.size != at.size:
            raise ValueError(
                f"{name}: its branch gives H, W of {end.size}, its input has {at.size}: they"
                " have to be the same"
            )
    record.of_classes(name, sides)
    numbers = tuple(map(torch.cat, zip(*(side.step.numbers for side in sides), strict=True)))
    sources = tuple(source for side in sides for source in side.step.sources)
    inputs = tuple(side.step.name for side in sides)
    found = record.step(name, CAT, inputs, numbers, sources, at.size)
    return found._replace(
        curved={k: v for side in sides for k, v in side.curved.items()},
        lifted={k: v for side in sides for k, v in side.lifted.items()},
    )


def multiply(record: Record, name: str, sides: tuple[At, ...]) -> At:
    """A product is 0 where one side is; it has the numbers, so the factors, of one side."""
    record.of_classes(name, sides)
    at = next((side for side in sides if side.size != (1, 1)), sides[0])
    for side in sides:
        if side.size not in ((1, 1), at.size) or text(side.step.numbers) != text(at.step.numbers):
            raise ValueError(f"{name}: multiplies activations of different shapes")
    inputs = tuple(side.step.name for side in sides)
    found = record.step(name, MUL, inputs, at.step.numbers, at.step.sources, at.size)
    others = {source for side in sides if side is not at for source in side.step.sources}
    curved = dict.fromkeys(others, f"{name} (a product)")
    still = [side.lifted for side in sides]
    lifted = {} if not all(still) else {k: v for side in still for k, v in side.items()}
    record.consume(found._replace(curved=curved))
    return found._replace(curved=curved | at.curved, lifted=lifted)


def pick(record: Record, pick: Pick, name: str, at: At) -> At:
    record.refuse_classes(name, at)
    numbers = tuple(
        given[torch.tensor(chosen, device="cpu")]
        for given, chosen in zip(at.step.numbers, pick.places, strict=True)
    )
    found = record.step(name, pick, (at.step.name,), numbers, at.step.sources, at.size)
    return found._replace(curved=at.curved, lifted=at.lifted)


def flat(record: Record, name: str, at: At) -> At:
    """[B, C] from maps of one pixel, for an output."""
    if at.size != (1, 1):
        raise ValueError(f"{name}: flattens maps of {at.size[0]}x{at.size[1]} pixels, not 1x1")
    return record.step(name, FLAT, (at.step.name,), at.step.numbers, at.step.sources, at.size)


def plain(record: Record, module: nn.Module, name: str, at: At) -> At:
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
            record.own(parameter, name, "parameter")
    try:
        found = effect(module, at.size)
    except ValueError as error:
        raise ValueError(f"{name}: {kind}: {error}") from error
    passed = dict.fromkeys(at.step.sources, f"{name} ({kind})")
    size, step = fit(found.size, name, at.size), at.step
    after = record.step(name, module, (step.name,), step.numbers, step.sources, size)
    return after._replace(
        curved=at.curved if found.homogeneous else passed | at.curved,
        lifted=at.lifted if found.keeps_zero else passed | at.lifted,
    )

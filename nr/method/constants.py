"""A dead scale still gives a constant, which moves into what reads it.

A norm before a convolution whose γ is 0 gives β at every pixel. Behind a convolution without
padding that is still one constant. The next batch norm would take it off again, so it goes into the
running mean there, or into a bias: exact in eval and in train mode. A reader with padding adds it
in the middle of its maps only; there it is left out.
"""

import copy
from functools import reduce

import torch
from torch import Tensor, nn

from nr.method.life import Life
from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import ADD, CAT, IMAGE, Pick
from nr.network.layers import Classifier, Head
from nr.network.norms import Bias
from nr.network.steps import Step, Wiring
from nr.network.units import Norm, Unit

# Plain modules that give a constant map as it is, whatever is linear about them.
STEADY = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)


@torch.no_grad()
def absorb(plan: Wiring, alive: Life, made: dict[str, Unit | Classifier]) -> None:
    """Put the constants of the norms' dead scales into the first stream of what was ``made``."""
    if plan.norms:
        _Constants(plan, alive, made).follow()


class _Constants:
    """By step, what the old activation has and the new one lacks: a constant for each channel [C].

    For a dead channel all that it gives; for a live one what its maker no longer adds to it.
    """

    def __init__(self, plan: Wiring, alive: Life, made: dict[str, Unit | Classifier]):
        self.plan, self.alive, self.made = plan, alive, made
        weight = plan.layers[0].unit.convs[0].weight
        self.zero = weight.new_zeros(())
        self.lost: dict[str, Tensor] = {}
        self.taken_off = self.norms_alone()

    def norms_alone(self) -> set[str]:
        """The steps that only norms read, perhaps behind what keeps a constant."""
        readers: dict[str, list[Step]] = {name: [] for name in self.plan.steps}
        for step in self.plan.steps.values():
            for name in step.inputs:
                readers[name].append(step)
        found: set[str] = set()
        for name in reversed(self.plan.steps):
            if all(isinstance(s.op, Norm) or s.name in found for s in readers[name]):
                op = self.plan.steps[name].op
                if op in (ADD, CAT) or isinstance(op, Pick | Unit) or _steady(op):
                    found.add(name)
        return found

    def follow(self) -> None:
        for name, step in self.plan.steps.items():
            if step.op == IMAGE:
                self.lost[name] = self.zero.expand(len(step.numbers[0]))
                continue
            given = [self.lost[source] for source in step.inputs]
            self.lost[name] = self.through(step, given)

    def through(self, step: Step, given: list[Tensor]) -> Tensor:
        """What a step gives for the constants that its inputs have lost."""
        live = self.alive.of(step.numbers[0]).to(self.zero.device)
        if isinstance(step.op, Norm):
            return self.norm(step, step.op, given[0], live)
        if isinstance(step.op, ConvBN):
            return self.unit(step, step.op, given[0], live)
        if isinstance(step.op, Classifier):
            self.classifier(step, step.op, given[0])
            return self.zero.expand(len(live))
        if step.op == CAT:
            return torch.cat(given)
        if step.op == ADD:
            return reduce(torch.add, given)
        if isinstance(step.op, Pick):
            return given[0][torch.tensor(step.op.places[0], device=self.zero.device)]
        if isinstance(step.op, nn.Module) and given[0].any():
            return _said(step.op, given[0])
        return self.zero.expand(len(live))

    def norm(self, step: Step, op: Norm, given: Tensor, live: Tensor) -> Tensor:
        """A dead scale gives β; a scale of a dead channel what it makes of its constant."""
        said = op.scales[0] * given
        for norm in op.batch_norms[:1]:
            source = self.plan.steps[step.inputs[0]].numbers[0]
            gone = ~self.alive.of(source).to(self.zero.device)
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            said = norm.bias + torch.where(gone, scale * (given - norm.running_mean), 0)
            if isinstance(new := self.made.get(step.name), Norm):
                new.batch_norms[0].running_mean.sub_(given[live])
        return torch.where(live, self.zero, said)

    def unit(self, step: Step, unit: ConvBN, given: Tensor, live: Tensor) -> Tensor:
        """What a convolution makes of constants goes into what follows it."""
        shift = nothing = self.zero.expand(len(live))
        new = self.made.get(step.name)
        if given.any() and unit.padding == 0 and not unit.transposed:
            (_, _, block), *_ = unit.blocks()
            columns = unit.spread(given)[:, :, 0, 0]  # [1 or o, i]
            shift = (block.sum(dim=(2, 3)) * columns).sum(1)
        if not isinstance(unit, Conv):
            if isinstance(new, ConvBN):
                new.batch_norms[0].running_mean.sub_(shift[live])
            return nothing
        bias, passed = unit.biases[0].bias, nothing
        if bias is None and step.name in self.taken_off:
            passed = nothing if new is None else shift
        elif isinstance(new, Conv):
            _add(new.biases[0], shift[live])
        if unit.group is None:
            return passed
        return torch.where(live, passed, shift if bias is None else shift + bias)  # made of nothing

    def classifier(self, step: Step, op: Classifier, given: Tensor) -> None:
        new = self.made[step.name]
        padded = isinstance(op, Head) and any(op.padding)
        if not padded and isinstance(new, Classifier):
            (_, block), *_ = op.blocks()
            _add(new.linears[0], (block.sum(2) * given).sum(1))


def _add(layer: Bias | nn.Linear | nn.Conv2d, shift: Tensor) -> None:
    """Add ``shift`` [C] to the bias of a layer, which may have none so far."""
    if shift.any():
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(shift))
        layer.bias.add_(shift)


def _steady(op: object) -> bool:
    """Whether a plain module passes a constant map as it is."""
    if not isinstance(op, nn.AvgPool2d):
        return isinstance(op, STEADY)
    padded = op.padding not in (0, (0, 0)) and op.count_include_pad
    return op.divisor_override is None and not padded


def _said(module: nn.Module, constant: Tensor) -> Tensor:
    """What a plain module makes of constant maps, by channel; 0 if it is no constant any more."""
    if _steady(module):
        return constant
    own = copy.deepcopy(module).eval()
    made = own(constant[None, :, None, None].expand(-1, -1, 3, 3).contiguous())
    same = made.shape[2:] == (3, 3) and bool((made == made[:, :, :1, :1]).all())
    return made[0, :, 0, 0] if same else torch.zeros_like(constant)

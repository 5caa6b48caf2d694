"""Two streams -> one plain network with the same sum of logits, exactly (spec section 9).

The channels of both streams stand side by side: in each layer first the survived ones, then the
rejuvenated ones. A concatenation is read source by source, so its columns are permuted.
"""

import torch
from torch import nn

from nr.method.layout import Layout
from nr.method.rebuilding import moves, remade, swap, transplant
from nr.method.scaling import fold_scales
from nr.method.selecting import check_picks
from nr.network.checks import refuse_sharded
from nr.network.graph import ADD, CAT, FLAT, MUL
from nr.network.layers import Classifier, Network
from nr.network.numbers import Lists
from nr.network.plain import is_linear
from nr.network.steps import Wiring
from nr.network.units import Unit
from nr.network.wiring import wiring


@torch.inference_mode(False)
@torch.no_grad()
def merge(model: Network, fold: bool = False) -> None:
    """Make one plain stream, in place, of both streams of ``model``: its logits are their sum.

    Weights become block-diagonal after "removed" and dense after "full"; γ, β and running
    statistics stand side by side. The stem's rows are stacked, since both streams read the same
    image. The classifier becomes [W_S W_R], with twice the shared bias. Outputs are equal up to
    rounding, in eval and in train mode. The result can be measured, penalised and rejuvenated
    again. A network of one stream stays as it is.

    ``fold``: also multiply scales that stand alone (``scales`` of nr.convert) into the weights that
    read them, for a network that will not be searched again. A scale stays if a reader cannot take
    it: a sum, a norm, or a maximum if γ is negative.

    Raises ValueError, and leaves the network as it was, for "attention" whose cross weights are not
    0 (a gate is no convolution), for a parameter that is frozen in one stream only, and for a
    nonlinear module behind a classifier. An optimizer from before holds the old parameters: see
    nr.carry.
    """
    if model.streams > 1:
        _join(model)
    if fold:
        refuse_sharded(model)
        fold_scales(model)


def _join(model: Network) -> None:
    """Both streams as one."""
    refuse_sharded(model)
    plan = wiring(model)
    _refuse_gates(plan)
    _refuse_half_frozen(plan)
    _refuse_curved_ends(plan)
    layout = Layout(plan, _merged).lay()
    check_picks(model, layout)
    made = remade(layout, "plain")
    for unit in made.values():
        for _, _, block in unit.blocks() if isinstance(unit, Unit) else ():
            block.zero_()
    moved = moves(layout, made)
    transplant(layout, made, moved)
    for unit in made.values():
        if isinstance(unit, Classifier) and unit.linears[0].bias is not None:
            unit.linears[0].bias.mul_(model.streams)  # each stream had it
    swap(model, layout, made, moved)


def _merged(lists: Lists) -> Lists:
    """The channels of both streams, side by side."""
    return (torch.cat(lists).sort().values,)


def _refuse_gates(plan: Wiring) -> None:
    """Raise ValueError for cross-attention that does something."""
    for layer in plan.layers:
        if layer.unit.form == "attention":
            for i, o, block in layer.unit.blocks():
                if i != o and block.any():
                    raise ValueError(
                        f"{layer.name}: cross weights of the attention mode are not 0, and"
                        " own + 2σ(own)·cross is no convolution: only networks rejuvenated with"
                        ' cross="removed" or "full" merge after training'
                    )


def _refuse_curved_ends(plan: Wiring) -> None:
    """Raise ValueError unless f(a) + f(b) = f(a + b) behind a classifier."""
    after = {step.name for step, *_ in plan.heads}
    for step in plan.steps.values():
        if step.name in after or after.isdisjoint(step.inputs):
            continue
        after.add(step.name)
        if step.op not in (ADD, CAT, FLAT) and not is_linear(step.op):
            kind = "a product" if step.op == MUL else type(step.op).__name__
            raise ValueError(
                f"{step.name}: {kind} of what a classifier gives is not linear, so the sum of both"
                " streams is no output of one network: put it behind the network before merging"
            )


def _refuse_half_frozen(plan: Wiring) -> None:
    """Raise ValueError for a parameter that would be frozen in part."""
    lists = {
        f"{step.name}.{child}": layers
        for step in plan.steps.values()
        if isinstance(step.op, Unit | Classifier)
        for child, layers in step.op.named_children()
        if isinstance(layers, nn.ModuleList)
    }
    for name, (first, *others) in lists.items():
        flags = {n: parameter.requires_grad for n, parameter in first.named_parameters()}
        for n, parameter in (pair for module in others for pair in module.named_parameters()):
            if parameter.requires_grad != flags[n]:
                raise ValueError(
                    f"{name}: {n} is frozen in one stream and not in the other, which one parameter"
                    " for both cannot be: give both the same requires_grad"
                )

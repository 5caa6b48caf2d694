"""The L1 penalty on prunable batch-norm scales (spec section 4), and how λ grows."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from nr.network.layers import Network
from nr.network.units import Unit
from nr.network.wiring import wiring

if TYPE_CHECKING:
    from typing_extensions import Unpack


@torch.no_grad()
def penalise(model: Network, sparsity: float, maximize: bool = False) -> None:
    """Add λ·sign(γ) to the gradient of every prunable γ that has one (spec section 4).

    For any optimizer: call it between backward and step, when the gradients are reduced, unscaled
    and clipped. ``sparsity``: λ. ``maximize``: if the optimizer climbs; the penalty is then
    subtracted. The network is walked each time, so a rebuilt one is taken as it is now. Raises
    ValueError for a λ that is negative or not finite.

    How to choose λ: a γ that the loss does not hold falls by about lr·λ/(1 - momentum) a step of
    SGD. With lr 0.1, momentum 0.9 and λ 1.5e-4 that is 1.5e-4, so a γ of 0.5 is dead after 3,300
    steps, four epochs of 50,000 images in batches of 64. Adam divides by the size of its gradients:
    there such a γ falls by about lr a step for any λ, and λ says how strong the loss's gradient has
    to be to hold it.
    """
    _penalise(prunable_units(model), sparsity, -1 if maximize else 1)


def _penalise(units: list[Unit], sparsity: float, scale: int | Tensor) -> None:
    """Add scale·λ·sign(γ) to the gradients of the scales of ``units``."""
    if not (math.isfinite(sparsity) and sparsity >= 0):
        raise ValueError(f"sparsity: {sparsity} is not a finite number from 0")
    if sparsity == 0:
        return
    scales = [gamma for unit in units for gamma in unit.scales]
    pairs = [(gamma, gamma.grad) for gamma in scales if gamma.grad is not None]
    if pairs:
        gammas, gradients = [gamma for gamma, _ in pairs], [gradient for _, gradient in pairs]
        sharded = hasattr(gammas[0], "full_tensor")  # FSDP2's, of which torch 2.6 takes no lists
        signs = tuple(map(torch.sign, gammas)) if sharded else torch._foreach_sign(gammas)
        if isinstance(scale, Tensor):  # on its device, for which the host does not wait
            amounts = [sign * (scale * sparsity).to(sign.device) for sign in signs]
            torch._foreach_add_(gradients, amounts)
        else:
            torch._foreach_add_(gradients, signs, alpha=scale * sparsity)


@torch.no_grad()
def penalise_before(optimizer: Optimizer, units: list[Unit], sparsity: float) -> None:
    """Penalise the scales of ``units`` in what ``optimizer`` is about to step on."""
    # A GradScaler leaves it to a fused step to divide the gradients by its scale.
    scale = getattr(optimizer, "grad_scale", None)
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    _penalise(units, sparsity, sign if scale is None else sign * scale)


def prunable_units(model: Network) -> list[Unit]:
    """The units whose width no residual sum fixes."""
    return [layer.unit for layer in wiring(model).prunable]


class Options(TypedDict, total=False):
    """Other arguments of torch's SGD."""

    dampening: float
    nesterov: bool
    maximize: bool
    foreach: bool | None
    differentiable: bool
    fused: bool | None


class SGD(torch.optim.SGD):
    """torch's SGD on all parameters of ``model``, with :func:`penalise` before each step.

    The penalty falls on prunable batch norms only, after the gradients are complete and before
    weight decay and momentum. ``sparsity``: λ; 0 in the train phase. A step after the network was
    rebuilt is a RuntimeError: make a new optimizer. A copy, or an unpickled one, steps on its own
    network, ``model``.
    """

    def __init__(
        self,
        model: Network,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        sparsity: float = 0.0,
        **options: "Unpack[Options]",
    ):
        units = prunable_units(model)
        super().__init__(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, **options
        )
        self.model, self.sparsity, self.units = model, sparsity, units

    def __getstate__(self) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("model", "sparsity", "units")}
        return super().__getstate__() | own

    # torch's gives the loss of a closure, which here there is none of.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. A closure is refused, since the penalty comes after its gradients."""
        if closure is not None:
            raise ValueError("nr.SGD: step takes no closure")
        penalise_before(self, self.units, self.sparsity)
        super().step()


def grow_sparsity(
    sparsity: float, previous: float, ratio: float, threshold: float, step: float
) -> float:
    """λ of the next search epoch: a ``step`` more if utilization fell by less than ``threshold``.

    ``previous``, ``ratio``: utilization before and after the epoch; at first ``previous`` is 1.
    """
    return sparsity + step if previous - ratio < threshold else sparsity

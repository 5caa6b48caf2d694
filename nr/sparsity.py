"""The L1 penalty on prunable batch-norm scales (spec section 4), and how its weight λ grows."""

import math
import warnings

import torch

from nr.layers import Network
from nr.units import ConvBN
from nr.wiring import wiring


@torch.no_grad()
def penalise(model: Network, sparsity: float) -> None:
    """Add λ·sign(γ) to the gradient of every prunable γ that has one (spec section 4).

    For any optimizer: between backward and step, once the gradients are reduced, unscaled and
    clipped. ``sparsity``: λ. The network is walked anew each time, so a rebuilt one is met as it
    is now. Raises ValueError for a λ that is negative or not finite.

    How to choose λ: where the loss does not hold it, γ falls by about lr·λ/(1 - momentum) a step
    of SGD. With lr 0.1, momentum 0.9 and λ 1.5e-4 that is 1.5e-4, so a γ of 0.5 is dead after
    3,300 steps, four epochs of 50,000 images in batches of 64. Adam divides by the size of its
    gradients: there a γ that only the penalty moves falls by about lr a step for any λ, and λ
    says how strong a gradient of the loss has to be to hold it.
    """
    _penalise(_prunable(model), sparsity)


def _penalise(units: list[ConvBN], sparsity: float) -> None:
    """Add λ·sign(γ) to the gradients that the scales of ``units`` have."""
    if not (math.isfinite(sparsity) and sparsity >= 0):
        raise ValueError(f"sparsity: {sparsity} is not a finite number from 0")
    if sparsity == 0:
        return
    gammas = [norm.weight for unit in units for norm in unit.norms]
    gammas = [gamma for gamma in gammas if gamma.grad is not None]
    if gammas:
        signs = torch._foreach_sign(gammas)
        torch._foreach_add_([gamma.grad for gamma in gammas], signs, alpha=sparsity)


def _prunable(model: Network) -> list[ConvBN]:
    """The units that no residual sum holds to their width."""
    return [layer.unit for layer in wiring(model).layers if not layer.fixed]


class SGD(torch.optim.SGD):
    """torch's SGD on all parameters of ``model``, with :func:`penalise` before each step.

    The penalty falls on prunable batch norms only, after the gradients are complete and before
    weight decay and momentum. ``sparsity``: λ, 0 in the train phase. After the network was rebuilt
    it needs a new optimizer; a step of the old one warns, once.
    """

    def __init__(
        self,
        model: Network,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        sparsity: float = 0.0,
        **options,
    ):
        units = _prunable(model)
        super().__init__(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, **options
        )
        self.model, self.sparsity = model, sparsity
        self.units, self.linear = units, model.classifier.linears[0]
        self.warned = False

    def step(self, closure=None):
        """One step; a closure is not supported, since the penalty follows its gradients."""
        if closure is not None:
            raise ValueError("nr.SGD: step takes no closure")
        if self.model.classifier.linears[0] is not self.linear and not self.warned:
            self.warned = True
            warnings.warn(
                "nr.SGD: the network was rebuilt after this optimizer was made, which steps on"
                " parameters that are no longer its own: make a new nr.SGD",
                stacklevel=3,  # torch wraps the step
            )
        _penalise(self.units, self.sparsity)
        return super().step()


def grow_sparsity(
    sparsity: float, previous: float, ratio: float, threshold: float, step: float
) -> float:
    """λ for the next search epoch: one ``step`` more where utilization fell by < ``threshold``.

    ``previous``, ``ratio``: utilization before and after the epoch, the first ``previous`` is 1.
    """
    return sparsity + step if previous - ratio < threshold else sparsity

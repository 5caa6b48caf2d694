"""The L1 penalty on prunable batch-norm scales (spec section 4), and how its weight λ grows."""

import torch

from nr.layers import Network
from nr.wiring import wiring


class SGD(torch.optim.SGD):
    """torch's SGD on all parameters of ``model``, with γ.grad += λ·sign(γ) before each step.

    The penalty falls on prunable batch norms only, after the gradients are complete and before
    weight decay and momentum. ``sparsity``: λ, 0 in the train phase.
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
        super().__init__(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, **options
        )
        self.sparsity = sparsity
        self.gammas = [
            norm.weight
            for layer in wiring(model).layers
            if not layer.unit.fixed
            for norm in layer.unit.norms
        ]

    @torch.no_grad()
    def penalise(self) -> None:
        """Add λ·sign(γ) to the gradient of every prunable γ that has one."""
        gammas = [gamma for gamma in self.gammas if gamma.grad is not None]
        if gammas and self.sparsity:
            signs = torch._foreach_sign(gammas)
            torch._foreach_add_([gamma.grad for gamma in gammas], signs, alpha=self.sparsity)

    def step(self, closure=None):
        """One step; a closure is not supported, since the penalty follows its gradients."""
        if closure is not None:
            raise ValueError("nr.SGD: step takes no closure")
        self.penalise()
        return super().step()


def grow_sparsity(
    sparsity: float, previous: float, ratio: float, threshold: float, step: float
) -> float:
    """λ for the next search epoch: one ``step`` more where utilization fell by < ``threshold``.

    ``previous``, ``ratio``: utilization before and after the epoch, the first ``previous`` is 1.
    """
    return sparsity + step if previous - ratio < threshold else sparsity

"""The search phase in a loop of one's own: a penalty in every step, and one rebuild."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from nr.method.carrying import carry
from nr.method.fitting import fitted
from nr.method.planning import Options, Plan, plan
from nr.method.rejuvenation import Report, rejuvenate
from nr.method.sparsity import SGD, penalise_before, prunable_units
from nr.method.utilization import utilization
from nr.network.layers import Network

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Search:
    """Penalises ``model`` in every step of ``optimizer``, until it is rebuilt.

    The penalty (spec section 4) comes inside the step: after gradients were averaged over
    processes, accumulated, unscaled and clipped, and before momentum; in a step with a closure,
    after the closure.

    ``sparsity``: λ, which may be set anew. ``target``: the utilization, 0 to 1, at which
    after_epoch rebuilds. ``options``: of nr.plan. The attribute ``optimizer`` is the one to go on
    with; ``plan`` is what was done, None during the search.

    Raises ValueError for a λ, target or option that makes no sense, for an optimizer that does not
    step on this network or penalises by itself, and for a network that nr.plan refuses.
    """

    def __init__(
        self,
        model: Network,
        optimizer: Optimizer,
        sparsity: float,
        target: float = 0.5,
        **options: "Unpack[Options]",
    ):
        if not 0 <= target <= 1:
            raise ValueError(f"target: {target!r} is no utilization from 0 to 1")
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer: a {type(optimizer).__name__} is no torch.optim.Optimizer")
        if isinstance(optimizer, SGD) and optimizer.sparsity:
            raise ValueError("optimizer: an nr.SGD with a sparsity penalises by itself: give it 0")
        self.budget = plan(model, **options).budget
        self.units = prunable_units(model)
        penalise_before(optimizer, [], sparsity)  # refuses a λ that makes no sense
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        scales = [norm.weight for unit in self.units for norm in unit.norms]
        if any(gamma.requires_grad and id(gamma) not in held for gamma in scales):
            raise ValueError(
                "optimizer: does not step on all scales of this network: make it of"
                " model.parameters(), after conversion"
            )
        self.model, self.optimizer, self.options = model, optimizer, options
        self.sparsity, self.target = sparsity, target
        self.plan: Plan | None = None
        self.handle = optimizer.register_step_pre_hook(self._penalise)

    def after_epoch(self, *copies: Network) -> Report | None:
        """Measure; once utilization has fallen to the target rebuild, and return the report.

        ``copies``: networks like this one, such as an average of it, which are rebuilt alike. All
        processes use the first one's plan and get equal fresh weights. From then on ``optimizer``
        is nr.carry's, without a penalty, and this method does nothing. Raises ValueError for a copy
        that differs, before anything is changed, and as nr.carry does, when the network is rebuilt
        already.
        """
        if self.plan is not None:
            return None
        found, seed = self._planned()
        if found is None:
            return None
        for network in copies:
            fitted(network, found)  # refuses another network
        reports = [_rebuilt(network, found, seed) for network in (*copies, self.model)]
        self.handle.remove()
        self.plan, self.units = found, []
        self.optimizer = carry(self.optimizer)
        return reports[-1]

    def _planned(self) -> tuple[Plan | None, int]:
        """The plan, if it is time, and the seed of fresh weights: alike on all processes."""
        size = self.options.get("image_size")
        ratio = utilization(self.model, self.budget == "flops", size).ratio
        agreed: list[Any] = [None, 0]
        if ratio <= self.target:
            agreed = [plan(self.model, **self.options), int(torch.randint(2**62, ()))]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(agreed)
        return agreed[0], agreed[1]

    def _penalise(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a step: penalise, or wrap the closure so that it does."""
        own, *rest = args
        closure = kwargs.get("closure") or (rest[0] if rest else None)
        if closure is None:
            penalise_before(optimizer, self.units, self.sparsity)
            return None

        def penalised() -> object:
            loss = closure()
            penalise_before(optimizer, self.units, self.sparsity)
            return loss

        return (own,), kwargs | {"closure": penalised}


def _rebuilt(network: Network, found: Plan, seed: int) -> Report:
    """Rebuild with fresh weights of this seed; the generators go on as before."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # all of which it seeds
        torch.manual_seed(seed)
        return rejuvenate(network, plan=found)

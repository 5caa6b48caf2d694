"""The network in training on its devices: an epoch of it, and what a checkpoint keeps of it."""

from functools import partial

import torch
from torch import Tensor

import nr
from nr.method.utilization import relative_scales
from nr.network.layers import Network
from utils.data.batches import Testing, Training
from utils.errors import DataError, InputError
from utils.files import Plain
from utils.machine import distributed
from utils.machine.compiler import compile_network
from utils.machine.seeding import EPOCH, seed_generators
from utils.shown import plots
from utils.shown.meters import Figures
from utils.training import checkpoint
from utils.training.engine import evaluate, train_epoch
from utils.training.signals import Stopped, StopRequest
from utils.training.state import RunState, Usage


class Trainer:
    """A network on ``devices``, given by ``use``: as it is parallelised, with its optimizer.

    ``lr``, ``momentum``, ``weight_decay``: of SGD; ``amp``: bfloat16 autocast; ``compiled``: the
    mode of torch.compile, or None; ``partial``: inside an epoch this process's figures
    [batches, 4] of its finished batches.
    """

    def __init__(
        self,
        devices: list[torch.device],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        amp: bool,
        compiled: str | None,
    ):
        self.devices, self.amp, self.compiled = devices, amp, compiled
        sgd = partial(nr.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.optimized = partial(sgd, fused=True)
        self.partial: Tensor | None = None

    def use(self, network: Network) -> None:
        """Train ``network`` from here on, with a fresh optimizer."""
        # Convolutions of a CPU, and those of a GPU in bfloat16, are faster in this order.
        channels_last = self.amp or self.devices[0].type == "cpu"
        order = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(self.devices[0]).to(memory_format=order)
        if self.compiled:
            compile_network(self.network, self.devices, self.compiled)
        self.model = distributed.parallel(self.network, self.devices)
        self.optimizer = self.optimized(self.network)

    def go_on(self, carried: bool) -> None:
        """Train the network as it was rebuilt; ``carried``: with the momentum of what survived."""
        before = self.optimizer
        self.use(self.network)
        if carried:
            self.optimizer = nr.carry(before)

    def epoch(
        self,
        state: RunState,
        lr: float,
        train_batches: Training,
        test_batches: Testing,
        stop: StopRequest,
    ) -> tuple[Figures, Figures]:
        """Train on every batch of the next epoch once and evaluate: the figures of both.

        Goes on where ``partial`` ends, else seeds the generators for the epoch. Raises Stopped
        after a signal, and DataError where a batch after new ones is missing, both with ``partial``
        as a checkpoint keeps it; InputError where nothing can be saved.
        """
        if self.compiled:
            refuse_empty(train_batches)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.sparsity = state.sparsity
        before = 0 if self.partial is None else len(self.partial)
        if self.partial is None:
            seed_generators(state.seed, EPOCH, state.epoch, distributed.rank())
        try:
            step = (self.optimizer, self.amp, stop)
            trained = train_epoch(self.model, train_batches, state.epoch, *step, self.partial)
            self.partial = trained
            train = Figures.of(distributed.total(trained.sum(dim=0)))
            test = self.evaluate(test_batches, stop)
        except (Stopped, DataError) as end:
            sums = trained if end.sums is None else end.sums
            # Processes do not have this error together.
            if isinstance(end, DataError) and (len(sums) == before or distributed.world() > 1):
                raise InputError(str(end)) from end
            if name := checkpoint.non_finite(self.network.state_dict()):  # by the last step
                raise InputError(
                    f"{name} is not finite at epoch {state.epoch + 1}, learning rate {lr:g};"
                    " nothing of this epoch was saved"
                ) from end
            self.partial = distributed.total(sums).cpu()
            raise
        self.partial = None
        return train, test

    def evaluate(self, batches: Testing, stop: StopRequest) -> Figures:
        """Loss and accuracies over all of ``batches``."""
        return evaluate(self.model, batches, self.amp, stop)

    def measure(self, flops: bool, image_size: int, searching: bool) -> Usage:
        """The network's usage, in multiply-adds if ``flops``; its ratio is the same everywhere."""
        usage = nr.utilization(self.network, flops, image_size)
        ratio, params = distributed.gathered(usage.ratio)[0], nr.count_params(self.network)
        if not searching:
            return Usage(ratio, params)
        live = {r.name: r.live_out / r.out_channels for r in usage.layers if not r.fixed}
        return Usage(ratio, params, live, scale_histogram(self.network))

    def payload(self) -> Plain:
        """What a checkpoint keeps: every process has to call this, rank 0 saves it."""
        return {
            "state_dict": self.network.state_dict(),
            "structure": nr.structure(self.network),
            "optimizer": self.optimizer.state_dict(),
            "partial": self.partial,
            "rng": distributed.gathered(checkpoint.rng_state()),
        }

    def restore(self, payload: Plain, state: RunState) -> None:
        """Take the momentum, figures and generators of ``payload``; its network is in use.

        A process whose generators the payload has not seeds them from where the run stands.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(payload["optimizer"] | {"param_groups": groups})
        for parameter, entry in self.optimizer.state.items():
            # In the order of its parameter, which the fused step needs.
            momentum = torch.empty_like(parameter, requires_grad=False)
            entry["momentum_buffer"] = momentum.copy_(entry["momentum_buffer"])
            if not torch.isfinite(momentum).all():
                raise ValueError("its momentum holds numbers that are not finite")
        self.partial, rank = payload["partial"], distributed.rank()
        if self.partial is not None and rank > 0:  # rank 0 keeps the figures of all processes
            self.partial = torch.zeros_like(self.partial)
        if rank < len(payload["rng"]):
            checkpoint.set_rng_state(payload["rng"][rank])
        elif self.partial is not None:
            seed_generators(state.seed, EPOCH, state.epoch, rank, len(self.partial))


def refuse_empty(batches: Training) -> None:
    """InputError for a share without images: compiled code would send less than others expect."""
    if any(share.positions.start == share.positions.stop for share in batches.shares):
        raise InputError(
            "--compile: the last batch of an epoch has fewer images than there are processes;"
            " another --train-batch, or run without it"
        )


def scale_histogram(network: Network) -> list[int]:
    """How many prunable scales lie in each of the bins of ``plots.scales``."""
    decades = relative_scales(network).log10().clamp(min=plots.LEAST_DECADE)
    return torch.histc(decades, plots.SCALE_BINS, plots.LEAST_DECADE, 0).int().tolist()

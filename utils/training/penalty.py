"""What the penalty of a search does to scales, said when it starts, and what helps if it fails."""

import math

from nr.method.life import DEAD_RATIO
from nr.network.wiring import wiring
from utils.data.batches import Training
from utils.machine import distributed
from utils.shown.log import phases
from utils.training.engine import step_lr
from utils.training.run import Run

GAMMA = 0.5  # the scale at the start of a search whose fall is forecast


class Penalty:
    """The penalty of the searches of ``run``, in which ``train_batches`` are trained on.

    A scale that the loss does not hold falls by lr·λ / (1 - momentum) a step of SGD.
    """

    def __init__(self, run: Run, train_batches: Training):
        self.run, self.steps = run, sum(share.steps for share in train_batches.shares)
        self.told = 0  # round whose search has been told of
        self.largest = math.inf  # scale at the start of it, or where it goes on
        self.warned = False

    def tell(self) -> None:
        """Print once a search what its penalty does, and warn once where it is too strong."""
        run, args = self.run, self.run.args
        if self.told != run.state.round:
            self.told, self.largest, self.warned = run.state.round, largest_scale(run), False
            print(f"| Penalty: {self.forecast()}")
        lr = step_lr(args.lr, run.state.phase_epoch, args.schedule, args.gamma)
        if not self.warned and self.jumps(lr, run.state.sparsity, self.largest):
            self.warned = True
            distributed.warn(
                f"Warning: the penalty moves a scale by {self.fall(lr, run.state.sparsity):.2g} a"
                f" step (lr {lr:g}, λ {run.state.sparsity:g}), more than {DEAD_RATIO:.0%} of the"
                f" largest, {self.largest:.2g}: scales jump over 0 instead of dying; a smaller λ or"
                " --lr helps"
            )

    def fall(self, lr: float, sparsity: float) -> float:
        """How far a scale that nothing holds falls in a step."""
        return lr * sparsity / (1 - self.run.args.momentum)

    def jumps(self, lr: float, sparsity: float, largest: float) -> bool:
        """Whether a step is larger than the range around 0 in which a scale is dead."""
        edge = DEAD_RATIO * largest
        fall = self.fall(lr, sparsity)
        return fall > edge and not math.isclose(fall, edge, rel_tol=1e-6)

    def forecast(self) -> str:
        """In words, when a scale of GAMMA that the loss does not hold will be dead, if ever."""
        args, state = self.run.args, self.run.state
        sparsity, growth = state.sparsity, vars(args).get("nr_increase_step", 0.0)
        first, done, left = self.fall(args.lr, sparsity), 0, GAMMA * (1 - DEAD_RATIO)
        grows = f"λ grows from {sparsity:g} by {growth:g} an epoch at most: " if growth else ""
        text = f"{grows}a scale of {GAMMA} that nothing holds"
        for epoch in range(state.phase_epoch, args.nr_max_epochs):
            fall = self.fall(step_lr(args.lr, epoch, args.schedule, args.gamma), sparsity)
            if fall * self.steps >= left:
                done += math.ceil(round(left / fall, 6))
                when = f"{done:,} steps, {done / self.steps:.1f} epochs"
                by = "" if growth else f" falls by {first:.2g} a step at first and"
                return f"{text}{by} is dead after {when}{', at the soonest' if growth else ''}"
            left, done, sparsity = left - fall * self.steps, done + self.steps, sparsity + growth
        fallen = GAMMA * (1 - DEAD_RATIO) - left
        return (
            f"{text} falls by {fallen:.2g} only in the {args.nr_max_epochs} epochs of the search"
            f" ({self.steps:,} steps each), too little to die"
        )

    def remedy(self, flag: str) -> str:
        """What helps a search that did not reach its target; ``flag``: says how large λ is."""
        rows, args = self.run.state.rows, self.run.args
        rows = [rows[i] for p in phases(rows)[-1:] for i in range(p.start, p.stop)]
        strengths = [(row["Learning Rate"], row["Sparsity"]) for row in rows]
        if strengths and self.jumps(*strengths[-1], largest_scale(self.run)):
            return f"scales jump over 0 instead of dying: a smaller {flag} or --lr lets them die"
        fallen = self.steps * sum(self.fall(*strength) for strength in strengths)
        if fallen >= GAMMA * (1 - DEAD_RATIO):
            return f"the loss holds the scales: a larger {flag} or --nr-max-epochs lets more die"
        later = any(lr < args.lr for lr, _ in strengths)
        return (
            f"a scale that nothing holds has fallen by {fallen:.2g} only: a larger {flag}"
            f"{', a later --schedule' if later else ''} or a larger --nr-max-epochs lets it die"
        )


def largest_scale(run: Run) -> float:
    """The largest |γ| of the network that the penalty falls on."""
    units = [layer.unit for layer in wiring(run.network).prunable]
    return max(float(gamma.detach().abs().max()) for unit in units for gamma in unit.scales)

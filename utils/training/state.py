"""Where a run stands, as plain data, and how it moves from epoch to epoch and phase to phase."""

from dataclasses import dataclass, field, replace

from nr.rejuvenation import Report
from utils.shown.meters import Figures
from utils.training.options import NO_REJUVENATION

ROUND_PICTURES = ("live", "scales", "widths")  # what of the state is drawn, a picture a round
NO_ACCURACY = -1.0  # best_acc where no network is kept as the best: any other is better


@dataclass
class RunState:
    """Where a run stands; saved and restored whole. Plain types only.

    ``epoch``: the next one, from the start of the run; ``round``: from 1, each a search and a
    train phase; ``round_start``: the epochs before it. Of this round: ``search_epochs``: 0 until
    rejuvenation; ``utilization``: the last measured, 1 before the first; ``live``: prunable layer
    -> live fraction of its outputs, a dict for each search epoch; ``scales``: the histogram of
    trainer.scale_histogram for each; ``widths``: (layer, before, survived, after) output channels.
    ``past``: live, scales and widths of each round before it. ``macs``: multiply-adds of an image
    through the trained, then the merged network, for each merging. ``seconds``: spent on the epoch
    in progress; ``rows``: of log.txt.
    """

    phase: str
    seed: int
    epoch: int = 0
    search_epochs: int = 0
    sparsity: float = 0.0
    utilization: float = 1.0
    acc: float = 0.0
    best_acc: float = 0.0
    rescaled: bool = False
    seconds: float = 0.0
    rows: list[dict] = field(default_factory=list)
    live: list[dict] = field(default_factory=list)
    scales: list[list[int]] = field(default_factory=list)
    widths: list[list] = field(default_factory=list)
    round: int = 1
    round_start: int = 0
    past: list[dict] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)

    @property
    def searching(self) -> bool:
        return self.phase == "search"

    @property
    def phase_epoch(self) -> int:
        """The next epoch, counted from the start of its phase."""
        return self.epoch - self.round_start - self.search_epochs

    @property
    def suffix(self) -> str:
        """What this round's files have in their names: nothing in the first."""
        return round_suffix(self.round)


def round_suffix(number: int) -> str:
    return f"_round{number}" if number > 1 else ""


@dataclass(frozen=True)
class Usage:
    """How much of a network is in use; ``live`` and ``scales``: as in RunState, in a search only.

    ``ratio``: its utilization; ``params``: all that it has.
    """

    ratio: float
    params: int
    live: dict[str, float] | None = None
    scales: list[int] | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch has shown, and the network's usage after it."""

    lr: float
    train: Figures
    test: Figures
    usage: Usage
    seconds: float


def begin(seed: int, target: float, sparsity: float, first_epoch: int = 0) -> RunState:
    """A fresh run: in its search with λ = ``sparsity``, unless ``target`` means plain training."""
    if target >= NO_REJUVENATION:
        return RunState("train", seed, epoch=first_epoch)
    return RunState("search", seed, epoch=first_epoch, sparsity=sparsity)


def improves(state: RunState, top1: float) -> bool:
    """Whether this accuracy, in percent, is the best of all train phases; a search has no best."""
    return not state.searching and top1 > state.best_acc


def after_epoch(state: RunState, epoch: Epoch, top5: bool) -> RunState:
    """One epoch on; ``top5``: log that accuracy as well."""
    return replace(
        state,
        epoch=state.epoch + 1,
        utilization=epoch.usage.ratio,
        acc=epoch.test.top1,
        best_acc=epoch.test.top1 if improves(state, epoch.test.top1) else state.best_acc,
        seconds=0.0,
        rows=[*state.rows, row(state, epoch, top5)],
        live=[*state.live, epoch.usage.live] if state.searching else state.live,
        scales=[*state.scales, epoch.usage.scales] if state.searching else state.scales,
    )


def row(state: RunState, epoch: Epoch, top5: bool) -> dict:
    """The line of log.txt for an epoch that began at ``state``."""
    return (
        {
            "Learning Rate": epoch.lr,
            "Train Loss": epoch.train.loss,
            "Valid Loss": epoch.test.loss,
            "Train Acc.": epoch.train.top1,
            "Valid Acc.": epoch.test.top1,
        }
        | ({"Valid 5 Acc.": epoch.test.top5} if top5 else {})
        | {
            "Phase": state.phase,
            "Utilization": epoch.usage.ratio,
            "Sparsity": state.sparsity,
            "Params": epoch.usage.params,
            "Seconds": epoch.seconds,
        }
    )


def after_rejuvenation(state: RunState, report: Report) -> RunState:
    """From the search to the train phase: λ = 0, the clock at 0."""
    widths = [[c.name, c.before[1], c.survived[1], c.after[1]] for c in report.layers]
    searched = state.phase_epoch
    return replace(state, phase="train", search_epochs=searched, sparsity=0.0, widths=widths)


def next_round(state: RunState, sparsity: float, macs: tuple[int, int]) -> RunState:
    """From a train phase to the search of the next round, with λ = ``sparsity``, as at first.

    ``macs``: multiply-adds of the network before and after its streams were merged.
    """
    shown = {name: getattr(state, name) for name in ROUND_PICTURES}
    fresh = RunState("search", state.seed, sparsity=sparsity)
    return replace(
        fresh,
        epoch=state.epoch,
        round=state.round + 1,
        round_start=state.epoch,
        acc=state.acc,
        best_acc=state.best_acc,
        rows=state.rows,
        past=[*state.past, shown],
        macs=[*state.macs, *macs],
    )


def at_phase_end(state: RunState, target: float, max_epochs: int, epochs: int) -> bool:
    """Whether a phase has just ended: the search, by success or giving up, or the training."""
    if state.searching:
        return state.utilization <= target or state.phase_epoch >= max_epochs
    return state.phase_epoch in (0, epochs)

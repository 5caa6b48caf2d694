"""How a run moves from epoch to epoch and from phase to phase: functions from state to state."""

from dataclasses import replace

from nr.method.rejuvenation import Report
from utils.shown.log import Row
from utils.training.options import NO_REJUVENATION
from utils.training.state import ROUND_PICTURES, Epoch, RunState


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
    usage, searching = epoch.usage, state.searching
    return replace(
        state,
        epoch=state.epoch + 1,
        utilization=usage.ratio,
        acc=epoch.test.top1,
        best_acc=epoch.test.top1 if improves(state, epoch.test.top1) else state.best_acc,
        seconds=0.0,
        rows=[*state.rows, row(state, epoch, top5)],
        live=[*state.live, usage.live] if searching and usage.live else state.live,
        scales=[*state.scales, usage.scales] if searching and usage.scales else state.scales,
    )


def row(state: RunState, epoch: Epoch, top5: bool) -> Row:
    """The line of log.txt for an epoch that began at ``state``."""
    return {
        "Learning Rate": epoch.lr,
        "Train Loss": epoch.train.loss,
        "Valid Loss": epoch.test.loss,
        "Train Acc.": epoch.train.top1,
        "Valid Acc.": epoch.test.top1,
        **({"Valid 5 Acc.": epoch.test.top5} if top5 else {}),
        "Phase": state.phase,
        "Utilization": epoch.usage.ratio,
        "Sparsity": state.sparsity,
        "Params": epoch.usage.params,
        "Seconds": epoch.seconds,
    }


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
    kept = {name: getattr(state, name) for name in ("seed", "epoch", "acc", "best_acc", "rows")}
    return RunState(
        "search",
        **kept,
        sparsity=sparsity,
        round=state.round + 1,
        round_start=state.epoch,
        past=[*state.past, shown],
        macs=[*state.macs, *macs],
    )


def at_phase_end(state: RunState, target: float, max_epochs: int, epochs: int) -> bool:
    """Whether a phase has just ended: the search, by success or giving up, or the training."""
    if state.searching:
        return state.utilization <= target or state.phase_epoch >= max_epochs
    return state.phase_epoch in (0, epochs)

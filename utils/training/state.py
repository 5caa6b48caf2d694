"""Where a run stands, as plain data; transitions says how it moves on."""

from dataclasses import dataclass, field
from typing import Any

from utils.files import Plain
from utils.shown.log import Row
from utils.shown.meters import Figures

ROUND_PICTURES = ("live", "scales", "widths")  # what of the state is drawn, a picture a round
NO_ACCURACY = -1.0  # best_acc where no network is kept as the best: any other is better


@dataclass
class RunState:
    """Where a run stands; saved and restored whole. Plain types only.

    A round is a search and a train phase; what is not of the run is of the round in progress.
    """

    phase: str  # search or train
    seed: int
    epoch: int = 0  # of the run, the next one
    search_epochs: int = 0  # 0 until rejuvenation
    sparsity: float = 0.0  # λ
    utilization: float = 1.0  # the last measured
    acc: float = 0.0  # of the last epoch, in percent
    best_acc: float = 0.0  # of all train phases of the run
    rescaled: bool = False
    seconds: float = 0.0  # spent on the epoch in progress
    rows: list[Row] = field(default_factory=list)  # of log.txt
    # Of each search epoch: prunable layer -> live fraction of its outputs; trainer.scale_histogram.
    live: list[dict[str, float]] = field(default_factory=list)
    scales: list[list[int]] = field(default_factory=list)
    widths: list[list[Any]] = field(default_factory=list)  # layer, before, survived, after
    round: int = 1
    round_start: int = 0  # epochs of the run before this round
    past: list[Plain] = field(default_factory=list)  # live, scales and widths of earlier rounds
    macs: list[int] = field(default_factory=list)  # of an image before and after each merging

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
    """How much of a network is in use."""

    ratio: float  # utilization
    params: int  # all that it has
    live: dict[str, float] | None = None  # as in RunState, in a search only
    scales: list[int] | None = None  # likewise


@dataclass(frozen=True)
class Epoch:
    """What one epoch has shown, and the network's usage after it."""

    lr: float
    train: Figures
    test: Figures
    usage: Usage
    seconds: float

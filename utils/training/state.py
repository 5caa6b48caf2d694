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
    rows: list[Row] = field(default_factory=list)
    live: list[dict[str, float]] = field(default_factory=list)
    scales: list[list[int]] = field(default_factory=list)
    widths: list[list[Any]] = field(default_factory=list)
    round: int = 1
    round_start: int = 0
    past: list[Plain] = field(default_factory=list)
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

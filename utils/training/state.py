"""Where a run stands, as plain data."""

from dataclasses import dataclass, field


@dataclass
class RunState:
    """Where a run stands; saved and restored whole. Plain types only.

    ``epoch``: the next one, from the start of the run; ``search_epochs``: 0 until rejuvenation;
    ``utilization``: the last measured, 1 before the first; ``seconds``: spent on the epoch in
    progress; ``rows``: of log.txt; ``live``: prunable layer -> live fraction of its outputs, a
    dict for each search epoch; ``scales``: the histogram of folder.scale_histogram for each;
    ``widths``: (layer, before, survived, after) output channels.
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

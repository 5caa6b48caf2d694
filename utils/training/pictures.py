"""The pictures of a run's folder: curves, and of each round utilization, scales and widths."""

import time
from pathlib import Path

from nr.method.life import DEAD_RATIO
from utils.files import Plain
from utils.shown import plots
from utils.training.state import ROUND_PICTURES, RunState, round_suffix

DRAWING_SHARE = 0.05  # of a run's time, at most


class Pictures:
    """Draws what is shown of a run in the folder ``path``, without slowing the run."""

    def __init__(self, path: Path):
        self.path = path
        self.started, self.drawing = time.perf_counter(), 0.0  # seconds spent on pictures

    def draw(self, state: RunState, due: bool) -> None:
        """Draw what is not there yet, and what has changed where it is ``due``.

        What is not due is drawn, too, while drawing takes less than its share of the time.
        """
        start = time.perf_counter()
        due = due or self.drawing / (start - self.started) < DRAWING_SHARE
        # The search is over, and this process has drawn it.
        searched = not state.searching and state.phase_epoch > 0 and self.drawing > 0
        if state.rows and (due or not (self.path / "curves.png").exists()):
            plots.curves(state.rows, self.path / "curves.png")
        for number, shown in enumerate(state.past, start=1):
            self._draw_round(shown, round_suffix(number), due and self.drawing == 0)
        present = {name: getattr(state, name) for name in ROUND_PICTURES}
        self._draw_round(present, state.suffix, due and not searched)
        self.drawing += time.perf_counter() - start

    def _draw_round(self, shown: Plain, suffix: str, due: bool) -> None:
        """The pictures of one round's search and rejuvenation; ``shown``: as in state.past."""

        def wanted(name: str) -> Path | None:
            path = self.path / f"{name}{suffix}.png"
            return path if due or not path.exists() else None

        if shown["live"] and (path := wanted("utilization")):
            plots.utilization(shown["live"], path)
        if shown["scales"] and (path := wanted("scales")):
            plots.scales(shown["scales"], DEAD_RATIO, path)
        if shown["widths"] and (path := wanted("widths")):
            plots.widths([tuple(row) for row in shown["widths"]], path)

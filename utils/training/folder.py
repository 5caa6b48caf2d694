"""The folder of a run: its checkpoints, and what a person reads: log.txt, run.json, pictures."""

import itertools
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from nr.utilization import DEAD_RATIO
from utils.errors import InputError
from utils.files import write_atomically
from utils.shown import plots
from utils.shown.log import read_log, write_log
from utils.training import checkpoint
from utils.training.state import RunState

FILES = ("*.pth.tar", "log.txt", "run.json", "*.png")  # what a run leaves in its folder
DRAWING_SHARE = 0.05  # of a run's time, at most


class RunFolder:
    """A folder of checkpoints, log and pictures; made by ``claim``, before any file is written."""

    def __init__(self, path: Path):
        self.path = path
        self.started, self.drawing = time.perf_counter(), 0.0  # seconds spent on pictures

    def find(self, resume: str | None, needed: bool) -> tuple[Path, dict] | None:
        """The checkpoint that --resume names and its content, or None for a fresh run.

        Raises InputError for one that cannot be read, and where one is ``needed`` and not there.
        """
        if resume is None:
            return None
        if resume != "auto":
            return Path(resume), checkpoint.read(resume)
        found = checkpoint.read_last(self.path)
        if found is None and needed:
            raise InputError(f"-e --resume auto: there is no {self.path / checkpoint.LAST}")
        if found is None:
            print(f"==> Nothing to resume in {self.path}: a fresh run")
        return found

    def claim(self, resumed: Path | None, auto: bool) -> None:
        """Make the folder; put aside another run's files in it, which this one would overwrite.

        ``resumed``: the checkpoint that goes on; if it lies in the folder, the files are its own;
        ``auto``: it was found here, and if it is not the last one, that one is damaged.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--checkpoint {self.path}: {error.strerror}") from error
        for temporary in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            temporary.unlink()
        if resumed is None or not resumed.parent.samefile(self.path):
            self._put_aside()
        if auto and resumed is not None and resumed.name == checkpoint.PREVIOUS:
            checkpoint.put_damaged_aside(self.path)

    def _put_aside(self) -> None:
        old = [path for pattern in FILES for path in self.path.glob(pattern)]
        if old:
            names = (self.path / f"earlier-{number}" for number in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            aside.mkdir()
            for path in old:
                shutil.move(path, aside)
            print(f"==> {self.path} held another run: kept in {aside}")

    def save(self, name: str, payload: dict) -> None:
        """Write the checkpoint ``name``."""
        checkpoint.save(self.path / name, payload)

    def save_last(self, payload: dict, best: bool) -> None:
        """Write the last checkpoint, keeping the one before it; the best if it is; run.json."""
        checkpoint.save_last(self.path, payload, best=best)
        self._describe(payload)

    def catch_up(self, payload: dict, state: RunState) -> None:
        """Write run.json and log.txt again where a kill came between the checkpoint and them."""
        try:
            described = json.loads((self.path / "run.json").read_text())["structure"]
            logged = len(read_log(self.path / "log.txt"))
        except (KeyError, TypeError, ValueError, OSError, InputError):
            described, logged = None, 0
        if (described, logged) != (payload["structure"], len(state.rows)):
            self._describe(payload)
            self.show(state, due=False)

    def _describe(self, payload: dict) -> None:
        """run.json: what the run is, as plain data for utils.report, an entry a line."""
        description = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seed": payload["run"]["seed"],
            "network": payload["network"],
            "structure": payload["structure"],
            "args": payload["args"],
        }
        entries = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items())
        content = "{\n" + ",\n".join(entries) + "\n}\n"
        write_atomically(self.path / "run.json", content.encode())

    def show(self, state: RunState, due: bool) -> None:
        """Write log.txt and the pictures from the state.

        Pictures that are there are drawn again where they have changed and are ``due``, and else
        as long as drawing does not slow the run.
        """
        start = time.perf_counter()
        due = due or self.drawing / (start - self.started) < DRAWING_SHARE
        # The search is over, and this process has drawn it.
        searched = not state.searching and state.phase_epoch > 0 and self.drawing > 0
        if state.rows:
            write_log(self.path / "log.txt", state.rows)
        self._draw(state, due, due and not searched)
        self.drawing += time.perf_counter() - start

    def _draw(self, state: RunState, due: bool, search_due: bool) -> None:
        """The pictures that are due or not there yet; ``search_due``: those of the search."""

        def wanted(path: Path, again: bool) -> bool:
            return again or not path.exists()

        if state.rows and wanted(path := self.path / "curves.png", due):
            plots.curves(state.rows, path)
        if state.live and wanted(path := self.path / "utilization.png", search_due):
            plots.utilization(state.live, path)
        if state.scales and wanted(path := self.path / "scales.png", search_due):
            plots.scales(state.scales, DEAD_RATIO, path)
        if state.widths and wanted(path := self.path / "widths.png", search_due):
            plots.widths([tuple(row) for row in state.widths], path)

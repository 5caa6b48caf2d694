"""The folder of a run: its checkpoints, and what a person reads: log.txt, run.json, pictures."""

import json
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from nr.utilization import DEAD_RATIO
from utils.errors import InputError
from utils.files import write_atomically
from utils.shown import plots
from utils.shown.log import read_log, write_log
from utils.training import checkpoint, claim
from utils.training.state import ROUND_PICTURES, RunState, round_suffix
from utils.training.writer import Writer

DRAWING_SHARE = 0.05  # of a run's time, at most


class RunFolder:
    """A folder of checkpoints, log and pictures; ``reserve`` comes first, before any work.

    ``save`` and ``save_last`` return before the files are there: ``writer`` makes them, one after
    another. They and what asks for the files raise InputError where the write before has failed.
    """

    def __init__(self, path: Path):
        self.path, self.writer = path, Writer()
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

    def reserve(self) -> None:
        """Make the folder this run's alone, while this object lives; claim.reserve says how."""
        self.lock = claim.reserve(self.path)

    def claim(self, resumed: Path | None, payload: dict | None) -> None:
        """Put aside what the run would overwrite and does not stem from, as claim.claim says.

        ``resumed``: the checkpoint that goes on, and its content ``payload``.
        """
        claim.claim(self.path, resumed, payload)

    def has_best(self) -> bool:
        self.writer.wait()
        return (self.path / checkpoint.BEST).exists()

    def complete(self) -> None:
        """The best of a finished train phase is there, were it the last network."""
        if not self.has_best():
            checkpoint.keep_as(self.path / checkpoint.LAST, self.path / checkpoint.BEST)

    def save(self, name: str, payload: dict) -> None:
        """Write the checkpoint ``name``."""
        self.writer.write(payload, partial(checkpoint.save, self.path / name))

    def save_last(self, payload: dict, state: RunState, best: bool, due: bool) -> None:
        """Write the last checkpoint, keeping the one before it, and what describes it after it.

        ``best``: it is the best, too; ``state``, ``due``: as in ``show``.
        """
        state = replace(state)  # the run changes its own

        def write(payload: dict) -> None:
            checkpoint.save_last(self.path, payload, best=best)
            self._describe(payload)
            self.show(state, due)

        self.writer.write(payload, write)

    def catch_up(self, payload: dict, state: RunState) -> None:
        """Write run.json and log.txt again where they do not belong to the last checkpoint.

        A kill came between it and them, or it has just been brought here.
        """
        try:
            described = (self.path / claim.DESCRIPTION).read_text(encoding="utf-8")
            described = json.loads(described)["structure"]
            logged = len(read_log(self.path / claim.LOG))
        except (KeyError, TypeError, ValueError, OSError, InputError):
            described, logged = None, 0
        if (described, logged) != (payload["structure"], len(state.rows)):
            self._describe(payload)
            self.show(state, due=False)

    def _describe(self, payload: dict) -> None:
        """run.json: what the run is, as plain data for utils.report, an entry a line."""
        description = {
            "command": shlex.join([Path(*sys.argv[:1]).name, *sys.argv[1:]]),
            "seed": payload["run"]["seed"],
            "network": payload["network"],
            "structure": payload["structure"],
            "macs": payload["run"].get("macs", []),  # files from before rounds have none
            "args": payload["args"],
        }
        entries = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items())
        content = "{\n" + ",\n".join(entries) + "\n}\n"
        write_atomically(self.path / claim.DESCRIPTION, content.encode())

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
            write_log(self.path / claim.LOG, state.rows)
        self._draw(state, due, due and not searched)
        self.drawing += time.perf_counter() - start

    def _draw(self, state: RunState, due: bool, search_due: bool) -> None:
        """The pictures that are due or not there yet; ``search_due``: those of the search."""
        if state.rows and (due or not (self.path / "curves.png").exists()):
            plots.curves(state.rows, self.path / "curves.png")
        for number, shown in enumerate(state.past, start=1):
            self._draw_round(shown, round_suffix(number), due and self.drawing == 0)
        present = {name: getattr(state, name) for name in ROUND_PICTURES}
        self._draw_round(present, state.suffix, search_due)

    def _draw_round(self, shown: dict, suffix: str, due: bool) -> None:
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

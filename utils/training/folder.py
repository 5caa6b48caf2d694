"""The folder of a run: its checkpoints, and what a person reads: log.txt, run.json, pictures."""

import json
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nr.method.life import DEAD_RATIO
from utils.errors import InputError
from utils.files import Plain, write_atomically
from utils.shown import plots
from utils.shown.log import read_log, write_log
from utils.training import checkpoint, claim
from utils.training.state import ROUND_PICTURES, RunState, round_suffix
from utils.training.writer import Writer

DRAWING_SHARE = 0.05  # of a run's time that its pictures take, at most


class RunFolder:
    """A folder of checkpoints, log and pictures; ``reserve`` comes first, before any work.

    ``save`` and ``save_last`` return before the files are there: ``writer`` makes them, one after
    another. Where a write has failed, the next method raises its InputError.
    """

    def __init__(self, path: Path):
        self.path, self.writer = path, Writer()
        self.started, self.drawing = time.perf_counter(), 0.0  # seconds spent on pictures

    def find(self, resume: str | None, needed: bool) -> tuple[Path, Plain] | None:
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

    def claim(self, resumed: Path | None, payload: Plain | None) -> None:
        """Put aside what the run would overwrite and does not stem from, as claim.claim says."""
        claim.claim(self.path, resumed, payload)

    def has_best(self) -> bool:
        self.writer.wait()
        return (self.path / checkpoint.BEST).exists()

    def complete(self) -> None:
        """Make the last network the best one where a finished train phase has left none."""
        if not self.has_best():
            checkpoint.keep_as(self.path / checkpoint.LAST, self.path / checkpoint.BEST)

    def save(self, name: str, payload: Plain) -> None:
        """Write the checkpoint ``name``."""
        self.writer.write(payload, partial(checkpoint.save, self.path / name))

    def save_last(self, payload: Plain, state: RunState, best: bool, due: bool) -> None:
        """Write the last checkpoint, keeping the one before it, and then what describes it.

        ``best``: it is the best, too; ``state``, ``due``: as in ``show``.
        """
        state = replace(state)  # the run changes its own

        def write(payload: Plain) -> None:
            checkpoint.save_last(self.path, payload, best=best)
            self._describe(payload)
            self.show(state, due)

        self.writer.write(payload, write)

    def catch_up(self, payload: Plain, state: RunState) -> None:
        """Write run.json and log.txt again where they do not belong to the last checkpoint.

        A kill came between the writes, or the checkpoint has just been copied here.
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

    def _describe(self, payload: Plain) -> None:
        """run.json: what the run is, as plain data for utils.report, an entry a line."""
        description = {
            "command": shlex.join([Path(*sys.argv[:1]).name, *sys.argv[1:]]),
            "seed": payload["run"]["seed"],
            "network": payload["network"],
            "structure": payload["structure"],
            "data": payload.get("data"),  # files from before data had an identity have none
            "macs": payload["run"].get("macs", []),  # files from before rounds have none
            "args": payload["args"],
        }
        entries = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items())
        content = "{\n" + ",\n".join(entries) + "\n}\n"
        write_atomically(self.path / claim.DESCRIPTION, content.encode())

    def show(self, state: RunState, due: bool) -> None:
        """Write log.txt, and draw the pictures that are not there yet or ``due``.

        What is not due is drawn, too, while drawing takes less than its share of the time.
        """
        if state.rows:
            write_log(self.path / claim.LOG, state.rows)
        start, is_first = time.perf_counter(), self.drawing == 0
        due = due or self.drawing / (start - self.started) < DRAWING_SHARE
        # The search is over, and this process has drawn it.
        searched = not state.searching and state.phase_epoch > 0 and not is_first
        self._draw("curves", "", due, state.rows)
        rounds = [(past, round_suffix(n), due and is_first) for n, past in enumerate(state.past, 1)]
        present = {name: getattr(state, name) for name in ROUND_PICTURES}
        for shown, suffix, again in [*rounds, (present, state.suffix, due and not searched)]:
            self._draw("utilization", suffix, again, shown["live"])
            self._draw("scales", suffix, again, shown["scales"], DEAD_RATIO)
            self._draw("widths", suffix, again, shown["widths"])
        self.drawing += time.perf_counter() - start

    def _draw(self, name: str, suffix: str, again: bool, *shown: Any) -> None:
        """The picture ``name`` of what is ``shown``, if anything, by the function of its name."""
        path = self.path / f"{name}{suffix}.png"
        if shown[0] and (again or not path.exists()):
            getattr(plots, name)(*shown, path)

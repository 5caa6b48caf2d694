"""The folder of a run: its checkpoints, and what a person reads: log.txt, run.json, pictures."""

import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils.errors import InputError
from utils.files import Plain, write_atomically
from utils.shown.log import read_log, write_log
from utils.training import checkpoint, claim
from utils.training.pictures import Pictures
from utils.training.state import RunState
from utils.training.writer import Writer


class RunFolder:
    """A folder of checkpoints, log and pictures; ``reserve`` comes first, before any work.

    ``save`` and ``save_last`` return before the files are there: ``writer`` makes them, one after
    another. Where a write has failed, the next method raises its InputError.
    """

    def __init__(self, path: Path):
        self.path, self.writer, self.pictures = path, Writer(), Pictures(path)

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
        """The best of a finished train phase is there, were it the last network."""
        if not self.has_best():
            checkpoint.keep_as(self.path / checkpoint.LAST, self.path / checkpoint.BEST)

    def save(self, name: str, payload: Plain) -> None:
        """Write the checkpoint ``name``."""
        self.writer.write(payload, partial(checkpoint.save, self.path / name))

    def save_last(self, payload: Plain, state: RunState, best: bool, due: bool) -> None:
        """Write the last checkpoint, keeping the one before it, and what describes it after it.

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
        """Write log.txt and the pictures from the state; ``due``: as in Pictures.draw."""
        if state.rows:
            write_log(self.path / claim.LOG, state.rows)
        self.pictures.draw(state, due)

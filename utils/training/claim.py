"""Which files of a folder a run may overwrite: its own past; all else is put aside first."""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError
from utils.files import Plain
from utils.training import checkpoint, lock
from utils.training.checkpoint import BEST, DAMAGED, LAST, PREVIOUS, CheckpointError
from utils.training.lock import FolderLock

LOG, DESCRIPTION = "log.txt", "run.json"
PICTURES = ("curves", "utilization", "scales", "widths")
FILES = (
    *map(re.escape, (LAST, PREVIOUS, BEST, DAMAGED, LOG, DESCRIPTION)),
    rf"({'|'.join(PICTURES)})(_round\d+)?\.png",
    r"NR_.+_\d[0-9.e+-]*(_round\d+)?\.pth\.tar",
)  # what a run leaves in its folder, by name


def own_files(folder: Path, around: str = "{}") -> list[Path]:
    """What a run has left in ``folder``, the last checkpoint at the end; nothing of the user's.

    ``around``: pattern of what is around a run's names, as in files that were being written.
    """
    pattern = around.format(f"({'|'.join(FILES)})")
    found = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    return sorted(found, key=lambda path: (path.name == LAST, path.name))


def reserve(folder: Path) -> FolderLock:
    """Make ``folder`` this process's, while the result lives; what is wrong with it is found here.

    Raises InputError where it cannot be made or written to, and where another run lives in it.
    """
    with _named(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--checkpoint {folder}: is a file, and has to be a folder")
        for path in (folder, *folder.parents):
            if path.is_symlink() and not path.exists():
                raise InputError(
                    f"--checkpoint {folder}: {path} is a link to {os.readlink(path)}, which is not"
                    " there; make that folder, or name another"
                )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            held = lock.hold(folder)
        leftovers = own_files(folder, r"\.{}\.tmp")
        for path in [*leftovers, *own_files(folder)]:
            if path.is_dir():
                raise InputError(f"--checkpoint {path}: is a folder where a run has a file")
        for path in leftovers:
            path.unlink()
        own = [path for path in own_files(folder) if path.exists()]
        for number, path in enumerate(own):
            # A kill while saving, and older versions, have left two names of one file.
            if any(path.samefile(other) for other in own[:number]):
                checkpoint.keep_as(path, path)
    return held


def claim(folder: Path, resumed: Path | None, payload: Plain | None) -> None:
    """Make ``folder`` that of a run that begins, or goes on from the checkpoint ``resumed``.

    ``payload``: the content of ``resumed``. What this run would overwrite and does not stem from
    is put aside. Then the last checkpoint is ``resumed``, whatever happens to the first epoch; and
    the best of the train phases is brought along from its folder, where it is there.
    """
    with _named(folder):
        last, own = folder / LAST, own_files(folder)
        if resumed is None or payload is None:
            put_aside(folder, own)
            return
        here = resumed.parent.samefile(folder)
        if here and resumed.name == LAST:
            return
        newest = _state(last)
        if here and resumed.name == PREVIOUS and newest is None:
            if last.exists():  # damaged
                os.replace(last, folder / DAMAGED)
            checkpoint.keep_as(resumed, last)
            return
        now = _state_of(payload)
        if newest is None or not precedes(newest, now):
            put_aside(folder, [path for path in own if not _is_kept(path, resumed, now)])
        best = resumed.parent / BEST
        if not (folder / BEST).exists() and _is_best(_state(best), now):
            checkpoint.keep_as(best, folder / BEST)
        if not (last.exists() and last.samefile(resumed)):
            checkpoint.keep_as(resumed, last)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What the system refuses in the block, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--checkpoint {folder}: {error.strerror}") from error


def put_aside(folder: Path, files: list[Path]) -> None:
    """Move ``files`` of ``folder`` to a new folder in it, and say so."""
    if not files:
        return
    names = (folder / f"earlier-{number}" for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    aside.mkdir()
    for path in files:
        shutil.move(path, aside)
    print(f"==> {folder} held another run: kept in {aside}")


def precedes(state: Plain, other: Plain) -> bool:
    """Whether ``other`` is ``state`` or stems from it, by the rows of their logs.

    The seconds in them are the same for no two runs.
    """
    rows, length = state["rows"], len(state["rows"])
    if state["seed"] != other["seed"] or rows != other["rows"][:length]:
        return False
    return length < len(other["rows"]) or _progress(state) <= _progress(other)


def _progress(state: Plain) -> tuple[int, bool, bool, int]:
    """How far a run has come since its last epoch."""
    trains = state["phase"] == "train"
    return state.get("round", 1), trains, state["rescaled"], state["batches"]


def _state(path: Path) -> Plain | None:
    """Where the run of a checkpoint stands; None where that cannot be read."""
    try:
        return _state_of(checkpoint.read(path))
    except CheckpointError:
        return None


def _state_of(payload: Plain) -> Plain:
    partial = payload["partial"]
    return payload["run"] | {"batches": 0 if partial is None else len(partial)}


def _is_kept(path: Path, resumed: Path, now: Plain) -> bool:
    """Whether a file is ``resumed``, or a checkpoint from which the run at ``now`` stems."""
    if path.exists() and path.samefile(resumed):
        return True
    state = _state(path) if path.name.endswith(".pth.tar") else None
    return state is not None and precedes(state, now)


def _is_best(state: Plain | None, now: Plain) -> bool:
    """Whether ``state`` is the best that the run at ``now`` has had; a first search has none."""
    if state is None or state["phase"] != "train" or state["best_acc"] != now["best_acc"]:
        return False
    return (now["phase"] == "train" or now.get("round", 1) > 1) and precedes(state, now)

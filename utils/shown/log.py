"""log.txt: tab separated, one row an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import write_atomically

Row = dict[str, Any]  # of log.txt, by column: Phase is a word, all else a number


@dataclass(frozen=True)
class Phase:
    """A search or train phase in a log: its rows are ``start`` to ``stop`` - 1."""

    searching: bool
    start: int
    stop: int

    @property
    def epochs(self) -> int:
        return self.stop - self.start


def phases(rows: Sequence[Row]) -> list[Phase]:
    """The phases of a log in order."""
    found, start = [], 0
    for name, group in groupby(rows, key=lambda row: row["Phase"]):
        stop = start + len(list(group))
        found.append(Phase(name == "search", start, stop))
        start = stop
    return found


def rounds(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Epochs of the search and of the train phase of every round, 0 where it has none."""
    lengths: list[tuple[int, int]] = []
    for phase in phases(rows):
        if phase.searching:
            lengths.append((phase.epochs, 0))
        else:
            search = lengths.pop()[0] if phase.start else 0
            lengths.append((search, phase.epochs))
    return lengths


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """log.txt: a header line with the keys of the rows, then a line for each row."""
    header = "\t".join(rows[0]) if rows else ""
    lines = ["\t".join(_text(value) for value in row.values()) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in [header, *lines]).encode())


def read_log(path: Path) -> list[Row]:
    """The rows of a log.txt; every column but Phase is a number.

    Raises InputError naming the file where it is not a log.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        keys = header.split("\t")
        rows = [dict(zip(keys, line.split("\t"), strict=True)) for line in lines]
        return [{k: v if k == "Phase" else float(v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a log.txt: {error}") from error


def _text(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

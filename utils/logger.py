"""Files written whole or not at all, and log.txt: tab separated, one row an epoch."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utils.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises InputError naming the path where the disk is full or the folder is read-only; an older
    file at ``path`` is then whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: could not be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_log(path: Path, rows: Sequence[dict]) -> None:
    """log.txt: a header line with the keys of the rows, then a line for each row."""
    header = "\t".join(rows[0]) if rows else ""
    lines = ["\t".join(_text(value) for value in row.values()) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in [header, *lines]).encode())


def read_log(path: Path) -> list[dict]:
    """The rows of a log.txt; every column but Phase is a number.

    Raises InputError naming the file where it is not a log.
    """
    try:
        header, *lines = path.read_text().splitlines()
        keys = header.split("\t")
        rows = [dict(zip(keys, line.split("\t"), strict=True)) for line in lines]
        return [{k: v if k == "Phase" else float(v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a log.txt: {error}") from error


def _text(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

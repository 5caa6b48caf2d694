"""Files written whole or not at all."""

import os
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

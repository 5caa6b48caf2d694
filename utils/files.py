"""Files written whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from utils.errors import InputError

# What file systems answer that have no fsync, or none for folders, as CIFS, FUSE and Windows:
# the data is as safe as it can be there. A full or broken disk answers otherwise.
NO_SYNC = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.EISDIR,
)


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: a temporary file beside it, fsync, rename, fsync of the folder.

    Where a file system has no fsync, the rename alone has to do.
    Raises InputError naming the path where the disk is full or the folder is read-only; an older
    file at ``path`` is then whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: could not be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut, where folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_SYNC:
            return
        raise
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    """Put what is written on the disk, where the file system can be asked to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise

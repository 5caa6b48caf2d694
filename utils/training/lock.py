"""One run at a time in a folder: a lock that the system drops with the process that holds it."""

import errno
import json
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from utils.errors import InputError
from utils.files import Plain
from utils.machine import distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # what the system answers where another process holds it

_locks: weakref.WeakValueDictionary[tuple[int, int], "FolderLock"] = weakref.WeakValueDictionary()


class FolderLock:
    """Keeps ``folder`` for this process until nothing refers to the lock, or the process ends.

    It is a record lock on the file .lock: neither a forked worker nor SIGKILL keeps it, and it
    holds on all machines that share the file system. Without locks what .lock says of its process
    decides. InputError where another process holds it.
    """

    def __init__(self, folder: Path):
        path = folder / NAME
        handle = _locked(path)
        self.release = weakref.finalize(self, _release, path, handle, os.getpid())


def hold(folder: Path) -> FolderLock:
    """The lock of ``folder``, the same for all in this process. Raises as FolderLock does."""
    status = folder.stat()
    key = status.st_dev, status.st_ino
    lock = _locks.get(key)
    if lock is None:
        lock = _locks[key] = FolderLock(folder)
    return lock


@contextmanager
def let_go() -> Iterator[None]:
    """After the block this process holds no folder, even if an error keeps the run's objects."""
    try:
        yield
    finally:
        while _locks:
            _locks.popitem()[1].release()


def _locked(path: Path) -> int:
    """The handle of the file ``path``, locked, and signed by this process."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            if not path.exists():
                raise
            _remove_foreign(path)
            continue
        try:
            _take(path, handle)
            if _is_same_file(handle, path):  # else its owner has ended and removed it just now
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(_signature()).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _remove_foreign(path: Path) -> None:
    """Remove a file that another user has left; InputError where it is held or has to stay."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            _take(path, handle, shared=True)
            path.unlink()
        finally:
            os.close(handle)
    except OSError as error:
        raise InputError(
            f"--checkpoint {path.parent}: {path} is another user's ({error.strerror}); if no run is"
            " at work there, let its owner remove it, or name another folder"
        ) from error


def _take(path: Path, handle: int, shared: bool = False) -> None:
    """Lock the file ``path``, which ``handle`` is of. InputError where another process has it.

    Without locks what the file says of its process decides. ``shared``: for a file that may only
    be read; no other process can lock it for itself then.
    """
    locks, owner = _lock(handle, shared), _owner(handle)
    other = "another process"
    if owner:
        other = f"process {owner['process']} on {owner['host']}, begun {owner['since']}"
    if locks is False:
        raise InputError(
            f"--checkpoint {path.parent}: {other} is at work in it; wait for its end, or name"
            " another folder"
        )
    if locks is None and _may_live(owner):
        raise InputError(
            f"--checkpoint {path.parent}: {other} may be at work in it, and its file system has no"
            f" locks to tell; if that has ended, remove {path}"
        )
    if locks and owner and owner["host"] != socket.gethostname():
        distributed.warn(
            f"Warning: {path.parent} was left by {other}, which did not end in an orderly way;"
            " make sure that it has ended"
        )


def _lock(handle: int, shared: bool) -> bool | None:
    """Whether a file could be locked; None where its file system or the machine has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _release(path: Path, handle: int, process: int) -> None:
    """Remove the file and drop the lock, except in a forked copy of the process."""
    if os.getpid() != process:
        return
    with suppress(OSError):
        if _is_same_file(handle, path):
            path.unlink()
    os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _signature() -> Plain:
    """What .lock says of this process."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    process = os.getpid()
    host = {"host": socket.gethostname(), "process": process}
    return host | {"began": _began(process), "since": now}


def _owner(handle: int) -> Plain:
    """What .lock says of the process that wrote it; nothing where that was cut short."""
    try:
        owner = json.loads(os.pread(handle, 1000, 0))
        return owner if owner.keys() == _signature().keys() else {}
    except (ValueError, AttributeError):
        return {}


def _may_live(owner: Plain) -> bool:
    """Whether that process may still run: of those on other machines nothing is known."""
    if not owner or owner["host"] != socket.gethostname():
        return bool(owner)
    if owner["began"] is not None:
        return owner["began"] == _began(owner["process"])
    try:
        os.kill(owner["process"], 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _began(process: int) -> str | None:
    """When a process began, as Linux counts: tells processes with one number apart."""
    with suppress(OSError):
        content = Path(f"/proc/{process}/stat").read_text(errors="replace")
        return content.rpartition(")")[2].split()[19]  # field 22; the 2nd, a name, may hold blanks
    return None

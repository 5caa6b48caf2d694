"""training.lock: one process at a time in a folder, and free again however it ends."""

import errno
import fcntl
import gc
import json
import os
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.forks import ROOT, SERVER
from utils.errors import InputError
from utils.training import lock
from utils.training.lock import NAME, hold, let_go

HOLDING = r"""
import sys
from pathlib import Path
from utils.training import lock
held = lock.hold(Path(sys.argv[1]))
"""


def holding(folder: Path, forks: bool, said: Connection, end: Connection) -> None:
    """A process that holds ``folder`` until the other ``end`` is closed."""
    held = lock.hold(folder)
    if forks and os.fork() == 0:  # a worker process that outlives it
        held.release()
    said.send(os.getpid())
    with suppress(EOFError):
        end.recv()
    os._exit(0)


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds tmp_path; all are ended after the test."""
    started = []

    def start(forks: bool = False) -> BaseProcess:
        (hears, said), (waits, end) = SERVER.Pipe(duplex=False), SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=holding, args=(tmp_path, forks, said, waits))
        process.start()
        started.append((process, end))
        assert process.pid in [hears.recv() for _ in range(1 + forks)]
        return process

    yield start
    for process, end in started:
        process.kill()
        end.close()
        process.join(60)


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, None])
def without_locks(request, monkeypatch):
    """A file system, or with None a machine, that has no locks."""

    def refused(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "lockf", refused)


def leave(folder, **owner) -> None:
    """A lock file as another process has left it."""
    (folder / NAME).write_text(json.dumps(lock._signature() | owner))


def test_held_and_let_go(tmp_path):
    held = hold(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert hold(tmp_path) is held
    del held
    gc.collect()
    assert not (tmp_path / NAME).exists()
    with let_go():
        held = hold(tmp_path)
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()
    assert hold(tmp_path) is not held


def test_refused_while_the_first_lives_and_free_after_sigkill(tmp_path, holder):
    first = holder()
    with pytest.raises(InputError) as error:
        hold(tmp_path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--checkpoint {tmp_path}: process {first.pid} on ")
    assert line.endswith("is at work in it; wait for its end, or name another folder")
    assert (tmp_path / NAME).exists()
    first.kill()
    first.join(60)
    assert (tmp_path / NAME).exists()
    held = hold(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    del held


def test_a_worker_process_neither_drops_the_lock_nor_keeps_it(tmp_path, holder):
    first = holder(forks=True)
    with pytest.raises(InputError, match=f"process {first.pid} "):
        hold(tmp_path)
    first.kill()
    first.join(60)
    hold(tmp_path)


def test_an_orderly_end_removes_the_file(tmp_path):
    """Python's own, which a fork does not have."""
    subprocess.run([sys.executable, "-c", HOLDING, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    assert not (tmp_path / NAME).exists()


def test_a_file_that_its_owner_removes_in_between_is_made_again(tmp_path, monkeypatch):
    """Between open and lock; a lock on a file without a name would keep nobody out."""
    lockf, times = fcntl.lockf, []

    def late(handle, how):
        times.append(handle)
        if len(times) == 1:
            (tmp_path / NAME).unlink()
        return lockf(handle, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    held = hold(tmp_path)
    assert len(times) == 2 and (tmp_path / NAME).exists()
    del held


def test_a_file_that_was_cut_short_is_nobodys(tmp_path, without_locks):
    (tmp_path / NAME).write_text('{"host": ')
    hold(tmp_path)


def test_without_locks_a_process_that_has_ended_is_known(tmp_path, without_locks):
    leave(tmp_path, began="1")  # its number is used again
    hold(tmp_path)
    leave(tmp_path, process=2**30, began=None)
    hold(tmp_path)


@pytest.mark.parametrize(
    "owner", [{"host": "elsewhere"}, {"process": 1, "began": None}, {"process": os.getppid()}]
)
def test_without_locks_a_process_that_may_live_is_respected(tmp_path, without_locks, owner):
    began = {"began": lock._began(owner["process"])} if owner.keys() == {"process"} else {}
    leave(tmp_path, **owner, **began)
    with pytest.raises(InputError) as error:
        hold(tmp_path)
    (line,) = str(error.value).splitlines()
    assert "may be at work in it, and its file system has no locks to tell" in line
    assert line.endswith(f"if that has ended, remove {tmp_path / NAME}")


def test_what_another_machine_left_is_said(tmp_path, capsys):
    leave(tmp_path, host="elsewhere", process=7)
    held = hold(tmp_path)
    assert "was left by process 7 on elsewhere" in capsys.readouterr().err
    del held


@pytest.fixture
def foreign(monkeypatch):
    """A lock file that this user may read at most, with the codes to refuse it by."""
    opened = os.open

    def make(folder, reading: bool = True, removing: bool = True) -> None:
        leave(folder, process=2**30, began=None)
        file = (folder / NAME).stat()

        def refusing(path, flags, *mode, **how):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), file) and (flags & os.O_RDWR or not reading):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return opened(path, flags, *mode, **how)

        def kept(*_, **__):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "open", refusing)
        if not removing:
            monkeypatch.setattr(os, "unlink", kept)

    return make


def test_what_a_colleague_has_left_is_removed(tmp_path, foreign):
    foreign(tmp_path)
    held = hold(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    del held


@pytest.mark.parametrize("how", [{"reading": False}, {"removing": False}])
def test_what_a_colleague_has_left_and_has_to_stay_is_named(tmp_path, foreign, monkeypatch, how):
    foreign(tmp_path, **how)
    with pytest.raises(InputError, match=r"\.lock is another user's \((Perm|Operation not perm)"):
        hold(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / NAME).exists()


def test_a_colleague_at_work_is_respected(tmp_path, foreign, holder):
    first = holder()
    foreign(tmp_path)
    (tmp_path / NAME).read_text()
    with pytest.raises(InputError, match="is at work in it; wait for its end"):
        hold(tmp_path)
    assert first.is_alive() and (tmp_path / NAME).exists()

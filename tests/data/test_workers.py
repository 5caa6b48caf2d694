"""data.workers where the system refuses them something: one line, status 1, nothing left running.

Limits of a process cannot be raised again, so each is set in a process of its own.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.image_files import message
from tests.running import started, wait_for
from utils.data import photographs, workers
from utils.training.script import SAVED

SECONDS = 120  # after which a test counts as hanging
ENDING = "or try fewer with -j (0: none)"
FLAGS = (
    "--synthetic --subset 20 -a resnet18_nr --epochs 1 --schedule 30 --image-size 32"
    " --width-mult 0.05 --train-batch 4 --manualSeed 1 --nr-target 1 -j 2"
)


def limit_files(more: int) -> None:
    """This process may open so many more files than it has open."""
    import resource  # not on Windows

    torchs = sys.modules.get("torch.distributed.nn.jit.instantiator")
    if hasattr(torchs, "_TEMP_DIR"):  # of old versions: it takes an open file to be removed
        torchs._TEMP_DIR.cleanup()
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more,) * 2)


def start(folder: Path, **how):
    """imagenet.py with two workers; ``how``: as `running.started` takes it."""
    return started(FLAGS, folder, script="imagenet.py", **how)


def refused(folder: Path, **how) -> str:
    """The line on the error stream of a process that ends with status 1."""
    with start(folder, **how) as process:
        _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert len(errors.splitlines()) == 1, errors
    return errors.strip().removesuffix(SAVED)  # where a batch had been trained


def long_folder(tmp_path: Path) -> Path:
    """A path of 200 characters below ``tmp_path``: too long for a socket."""
    folder = tmp_path / ("a" * 100) / ("b" * 98)
    folder.mkdir(parents=True)
    return folder


def test_a_tmpdir_too_long_for_a_socket(tmp_path):
    line = refused(tmp_path / "run", TMPDIR=str(long_folder(tmp_path)))
    assert "--workers 2: AF_UNIX path too long; set TMPDIR to a shorter path" in line
    assert line.endswith(ENDING)


@pytest.mark.skipif(sys.platform != "linux", reason="counts its open files in /proc")
@pytest.mark.parametrize("limit", [2, 7, 11, 14])
def test_few_open_files(tmp_path, limit):
    """Whatever is the first that cannot be opened: a queue, a start, a batch."""
    line = refused(tmp_path, setup=partial(limit_files, limit))
    assert "raise ulimit -n" in line and line.endswith(ENDING)
    assert "Too many open files" in line or "No usable temporary directory" in line


def epoch(number: int = 2) -> list:
    train, _ = photographs.make_synthetic(16, 20)
    return list(photographs.TrainBatches(train, 4, 1, number, "cpu").epoch(0))


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
@pytest.mark.parametrize("first", [1, 2])
def test_a_start_that_fails(monkeypatch, capfd, code, first):
    """``first``: the worker that cannot be forked; those before it are ended."""
    fork, calls = os.fork, []

    def refusing() -> int:
        calls.append(None)
        if len(calls) == first:
            raise OSError(code, os.strerror(code))
        return fork()

    monkeypatch.setattr(os, "fork", refusing)
    text = message(epoch)
    assert text.startswith(f"--workers 2: [Errno {code}] {os.strerror(code)}; ")
    assert text.endswith(ENDING)
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("reason", ["No space left on device (28)", "Cannot allocate memory (12)"])
def test_shared_memory_that_a_worker_does_not_get(monkeypatch, reason):
    def refusing(*_):
        raise RuntimeError(f"unable to allocate shared memory(shm) for file </torch_1>: {reason}")

    monkeypatch.setattr(workers, "default_collate", refusing)
    text = message(epoch)
    assert text.startswith("--workers 2: ") and reason in text and text.endswith(ENDING)
    assert "Traceback" not in text


def start_without_threads(number: int, start=workers.start_worker) -> None:
    def refusing(*_):
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refusing)
        start(number)


def test_threads_that_a_worker_does_not_get(monkeypatch):
    monkeypatch.setattr(workers, "start_worker", start_without_threads)
    assert "can't start new thread; raise ulimit -u" in message(epoch)


@pytest.mark.skipif(workers.START_METHOD != "fork", reason="workers are forked on Linux only")
def test_a_worker_without_threads_can_be_ended():
    """The main process ends its workers by SIGTERM, and waits for them."""

    forked = multiprocessing.get_context("fork")
    begun = forked.Event()

    def work():
        with suppress(RuntimeError):
            start_without_threads(0)
        begun.set()
        time.sleep(SECONDS)

    worker = forked.Process(target=work)
    worker.start()
    assert begun.wait(SECONDS)
    worker.terminate()
    worker.join(SECONDS / 4)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_whose_workers_send_nothing(tmp_path, signum):
    """A line that came after the signal, or the signal's status: never a run that waits."""
    with start(tmp_path / "run", TMPDIR=str(long_folder(tmp_path))) as process:
        wait_for("Epoch", process)
        process.send_signal(signum)
        process.communicate()
    assert process.returncode in (1, 128 + signum)


def test_a_batch_that_a_worker_cannot_send(monkeypatch):

    def refusing(storage, *rest):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refusing)  # in its thread
    assert "Too many open files; raise ulimit -n" in message(epoch)

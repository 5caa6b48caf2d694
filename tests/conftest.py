"""A process for each core and one more, of one thread: the tests' tensors are small."""

import atexit
import os
import shutil
import signal
import tempfile
from contextlib import suppress

import torch

MOST_WORKERS = 16  # more would wait for the longest group of tests

torch.set_num_threads(1)
# What was compiled for this machine's CPU crashes where the environment names a lesser one.
CACHE = "TORCHINDUCTOR_CACHE_DIR"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled-by-tests-")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
with suppress(AttributeError, ValueError):  # no such signal, or not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup are as those of a terminal


def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return min((cores or 1) + 1, MOST_WORKERS)  # one waits for the processes that it has started

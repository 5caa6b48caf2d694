"""One process a core, of one thread: the tests' tensors are small."""

import os
import signal
from contextlib import suppress

import torch

MOST_WORKERS = 16  # more would wait for the longest group of tests

torch.set_num_threads(1)
with suppress(AttributeError, ValueError):  # no such signal, or not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup are as those of a terminal


def pytest_xdist_auto_num_workers() -> int:
    """The cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)

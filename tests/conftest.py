"""A process for each core, of one thread: the tests' tensors are small."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
MOST_WORKERS = 16  # more would wait for the longest group of tests
# Begun first, or one process would still be at them when the others are done.
LONGEST = (
    "scripts/test_cifar_script.py",
    "test_speed.py",
    "scripts/test_imagenet_script.py",
    "training/test_run.py",
    "scripts/test_torchrun.py",
    "nr/test_conversion.py",
    "nr/test_memory_order.py",
    "study/test_study.py",
    "test_compiling.py",
    "data/test_sets.py",
    "training/test_script.py",
    "scripts/test_faults.py",
    "machine/test_nodes.py",
    "data/test_workers.py",
)

torch.set_num_threads(1)
# What was compiled for this machine's CPU crashes where the environment names a lesser one.
CACHE = "TORCHINDUCTOR_CACHE_DIR"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled-by-tests-")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
with suppress(AttributeError, ValueError):  # no such signal, or not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup are as those of a terminal


def pytest_xdist_auto_num_workers() -> int:
    """The cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """What is imported stays, so no collection of garbage looks at it again."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of ``LONGEST`` come first, as --no-loadscope-reorder leaves them."""
    at = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: at.get(item.path, len(LONGEST)))

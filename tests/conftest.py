"""A process for each core, of one thread: the tests' tensors are small."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MOST_WORKERS = 16  # more would wait for the longest group of tests
# Begun first of all: its tests fork their process, which takes the longer the more it holds.
FORKING = TESTS / "data/photographs"
# Begun next, or one process would still be at them when the others are done.
LONGEST = (
    "test_speed.py",
    "scripts/test_torchrun.py",
    "scripts/test_cifar_script.py",
    "scripts/test_imagenet_script.py",
    "training/run/test_rounds.py",
    "nr/test_families.py",
    "nr/test_survivors.py",
    "machine/test_memory_order.py",
    "nr/test_conversion.py",
    "training/test_script.py",
    "machine/test_nodes.py",
    "scripts/test_library_networks.py",
    "test_compiling.py",
    "study/test_study.py",
    "shown/test_plots.py",
    "test_benchmark.py",
    "nr/test_structure.py",
    "models/test_pretrained.py",
    "scripts/test_faults.py",
    "data/test_workers.py",
)

# What -m quick runs: mathematics, on any system. Of each test so many of its cases, spread evenly.
QUICK_CASES = 2
QUICK = (
    "nr",
    "models/test_cifar.py",
    "models/test_imagenet.py",
    "data/test_batches.py",
    "data/test_identity.py",
    "data/test_modes.py",
    "report/test_comparison.py",
    "training/test_engine.py",
    "training/test_penalty.py",
    "training/test_transitions.py",
)
# In these rooms, but what pip builds.
NOT_QUICK = ("nr/test_package.py",)

# What was compiled for this machine's CPU crashes where the environment names a lesser one.
CACHE = "TORCHINDUCTOR_CACHE_DIR"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled-by-tests-")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
with suppress(AttributeError, ValueError):  # no such signal, or not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup are as those of a terminal


def pytest_configure(config: pytest.Config) -> None:
    """Torch is for those who run tests: the process that starts the others is done without it."""
    gc.set_threshold(50_000)  # 700 costs up to a tenth; tests that look for garbage collect it
    if not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)
        if not torch.cuda.is_available():  # where it would keep a stack trace of every call
            torch.manual_seed = torch.default_generator.manual_seed


def pytest_xdist_auto_num_workers() -> int:
    """The cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """What is imported stays, so no collection of garbage looks at it again."""
    gc.freeze()


@cache
def is_quick(path: Path) -> bool:
    """Whether a file of tests is among those of -m quick."""
    within = {TESTS / name for name in QUICK} & {path, *path.parents}
    return bool(within) and path not in {TESTS / name for name in NOT_QUICK}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With -m quick no other file is imported: some want a system that has fork and locks."""
    others = config.option.markexpr == "quick" and collection_path.match("test_*.py")
    return True if others and not is_quick(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick; then the order of files, as --no-loadscope-reorder leaves them."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if is_quick(item.path) and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for found in cases.values():
        for item in found[:: -(-len(found) // QUICK_CASES)]:
            item.add_marker(pytest.mark.quick)
    at = {TESTS / name: number for number, name in enumerate(LONGEST)}
    at |= {item.path: -1 for item in items if FORKING in item.path.parents}
    items.sort(key=lambda item: at.get(item.path, len(LONGEST)))

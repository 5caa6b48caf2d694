"""Runs that are killed again and again end as an uninterrupted one does, bit for bit."""

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.running import assert_same_run, drive, dying, kill_all, started
from utils.data import sets
from utils.training import checkpoint, trainer
from utils.training.checkpoint import CheckpointError

SMALL = (
    "-d synthetic --subset 50 -a densenet --depth 10 --growthRate 4 --dropout 0.1"
    " --train-batch 20 --epochs 3 --schedule 2 --gamma 0.5 --lr 0.1"
    " --nr-sparsity 1e-3 --nr-target 0.97 --nr-max-epochs 5 --manualSeed 1 --resume auto"
)
DYING = dying(2)  # searches of three epochs
KILLS = int(os.environ.get("NR_TEST_KILLS", "1"))  # starts that are killed at random moments


@pytest.fixture(scope="module", autouse=True)
def searches_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_epoch", trainer.train_epoch)  # put back in the end
        DYING()
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    drive(SMALL, folder)
    return folder


class Deadly:
    """Kills this process at the ``countdown``-th file operation, from the first of a file NR_*."""

    def __init__(self, countdown: int):
        self.countdown, self.counting = countdown, False

    def __call__(self, name: str) -> Callable:
        """os.fsync, os.replace or os.link, counted."""
        call = getattr(os, name)

        def wrapped(*arguments, **options):
            file = arguments[-1]  # its name, or the number that it is open under
            file = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
            self.counting = self.counting or "NR_" in file
            self.countdown -= self.counting
            if self.countdown == 0:
                print("killed at", os.path.basename(file), file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped


def starts_that_kill_themselves() -> None:
    """Forks one start after another, each of which goes on to the script, until one is not killed.

    The data are made once.
    """
    DYING()
    whole = sets.load_cifar("synthetic", "", "cpu", subset=50)
    sets.load_cifar = lambda *_, **__: whole
    for countdown in range(1, 40):
        if os.fork() == 0:
            deadly = Deadly(countdown)
            for name in ("fsync", "replace", "link"):
                setattr(os, name, deadly(name))
            return
        status = os.waitstatus_to_exitcode(os.wait()[1])
        print("status", status, file=sys.stderr)
        if status != -signal.SIGKILL:
            break
    sys.exit()


@pytest.mark.slow
def test_killed_in_the_middle_of_saving(straight, tmp_path):
    """Each start is killed at a later point of the saves that follow the search."""
    with started(SMALL, tmp_path, setup=starts_that_kill_themselves) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    *killed, last = re.findall(r"^status (-?\d+)$", errors, re.MULTILINE)
    assert set(killed) == {"-9"} and last == "0", errors
    files = re.findall(r"^killed at (.+)$", errors, re.MULTILINE)
    names = ["NR_densenet_before_0.97", "NR_densenet_0.97", "checkpoint.prev", "checkpoint"]
    for name in names:
        assert {f".{name}.pth.tar.tmp", f"{name}.pth.tar"} <= set(files), files
    drive(SMALL, tmp_path)
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_killed_at_random_moments(straight, tmp_path):
    """SIGKILL some lines after each start."""
    lines = random.Random(0)
    for _ in range(KILLS):
        with started(SMALL, tmp_path, setup=DYING) as process:
            for _ in range(lines.randint(1, 8)):
                process.stdout.readline()
            time.sleep(lines.uniform(0, 0.3))
            kill_all(process)
    drive(SMALL, tmp_path)
    assert_same_run(tmp_path, straight)


def test_a_hundred_damages_are_all_noticed(straight, tmp_path):
    """One random byte of a real checkpoint changed, a hundred times."""
    data, places = (straight / "checkpoint.pth.tar").read_bytes(), random.Random(0)
    path = tmp_path / "checkpoint.pth.tar"
    for _ in range(100):
        damaged = bytearray(data)
        damaged[places.randrange(len(data))] ^= places.randint(1, 255)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.read(path)

"""Runs that are killed again and again end as an uninterrupted one does, bit for bit."""

import os
import random
import re
import subprocess
import time

import pytest

from tests.running import (
    ENVIRONMENT,
    LIMIT,
    ROOT,
    assert_same_run,
    command,
    drive,
    kill_all,
    started,
)
from utils.training import checkpoint
from utils.training.checkpoint import CheckpointError

SMALL = (
    "-d synthetic --subset 200 -a densenet --depth 10 --growthRate 4 --dropout 0.1"
    " --train-batch 20 --epochs 3 --schedule 2 --gamma 0.5 --lr 0.1"
    " --nr-sparsity 0.2 --nr-target 0.97 --nr-max-epochs 20 --manualSeed 1 --resume auto"
)
KILLS = int(os.environ.get("NR_TEST_KILLS", "1"))  # starts that are killed at random moments
# Forks one start after another, which saves their imports. Each kills itself at a file operation,
# a later one each: fsync, rename or link, counted from the first of a file NR_*. Pictures are
# written, but not rendered.
SELF_KILLING = """
import os, signal, sys
from matplotlib.figure import Figure
import cifar
from tests.running import save_unrendered
from utils.training.script import exit_status

def deadly(call):
    def wrapped(*arguments, **options):
        global countdown, counting
        file = arguments[-1]  # its name, or the number that it is open under
        file = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
        counting = counting or "NR_" in file
        countdown -= counting
        if countdown == 0:
            print("killed at", os.path.basename(file), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped

counting = False
Figure.savefig = save_unrendered
for countdown in range(1, 40):
    if os.fork() == 0:
        for name in ("fsync", "replace", "link"):
            setattr(os, name, deadly(getattr(os, name)))
        os._exit(exit_status(cifar.main))
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print("status", status, file=sys.stderr)
    if status != -signal.SIGKILL:
        break
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    drive(SMALL, folder)
    return folder


@pytest.mark.slow
def test_killed_in_the_middle_of_saving(straight, tmp_path):
    """Each start is killed at a later point of the saves that follow the search."""
    words = command(SMALL, tmp_path)
    words[1:2] = ["-c", SELF_KILLING]
    result = subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT
    )
    assert result.returncode == 0, result.stderr
    *killed, last = re.findall(r"^status (-?\d+)$", result.stderr, re.MULTILINE)
    assert set(killed) == {"-9"} and last == "0", result.stderr
    files = re.findall(r"^killed at (.+)$", result.stderr, re.MULTILINE)
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
        with started(command(SMALL, tmp_path)) as process:
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

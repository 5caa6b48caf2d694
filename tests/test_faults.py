"""Runs that are killed again and again end as an uninterrupted one does, bit for bit."""

import random
import subprocess
import time

import pytest

from tests.scripts import ENVIRONMENT, ROOT, assert_same_run, command, run

SMALL = (
    "-d synthetic --subset 200 -a densenet --depth 10 --growthRate 4 --dropout 0.1"
    " --train-batch 20 --epochs 3 --schedule 2 --lr 0.05 --nr-sparsity 0.1 --nr-target 0.97"
    " --nr-max-epochs 20 --manualSeed 1 --resume auto"
)
# Kills itself at a file operation: the `countdown`-th fsync, rename or link from the start.
SELF_KILLING = """
import os, signal, sys
countdown = int(sys.argv.pop(1))
def deadly(call):
    def wrapped(*arguments, **options):
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped
for name in ("fsync", "replace", "link"):
    setattr(os, name, deadly(getattr(os, name)))
import cifar
from utils.script import exit_status
sys.exit(exit_status(cifar.main))
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(SMALL, folder)
    return folder


@pytest.mark.slow
def test_killed_in_the_middle_of_saving(straight, tmp_path):
    """Each start is killed at a later point of a save, the rejuvenation's included."""
    kills = 0
    for countdown in range(19, 40):
        words = command(SMALL, tmp_path)
        words[1:2] = ["-c", SELF_KILLING, str(countdown)]
        result = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode in (0, -9), result.stderr
        if result.returncode == 0:
            break
        kills += 1
    else:
        run(SMALL, tmp_path)
    assert kills >= 3
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_killed_at_random_moments(straight, tmp_path):
    """SIGKILL some seconds after each start, until a start gets through."""
    moments = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            command(SMALL, tmp_path), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(4, 12))
        process.kill()
        process.wait()
    run(SMALL, tmp_path)
    assert_same_run(tmp_path, straight)

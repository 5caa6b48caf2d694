"""Runs that are killed again and again end as an uninterrupted one does, bit for bit."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import ENVIRONMENT, ROOT, assert_same_run, command, run
from utils.training import checkpoint
from utils.training.checkpoint import CheckpointError

SMALL = (
    "-d synthetic --subset 200 -a densenet --depth 10 --growthRate 4 --dropout 0.1"
    " --train-batch 20 --epochs 3 --schedule 2 --lr 0.05 --nr-sparsity 0.1 --nr-target 0.97"
    " --nr-max-epochs 20 --manualSeed 1 --resume auto"
)
KILLS = int(os.environ.get("NR_TEST_KILLS", "3"))  # starts that are killed at random moments
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
from utils.training.script import exit_status
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


def kill_at_random(folder: Path, kills: int, processes: int = 0) -> None:
    """SIGKILL to a run and all its processes, some batches after each of ``kills`` starts."""
    lines = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(
            command(SMALL, folder, processes=processes),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(lines.randint(1, 8)):
            process.stdout.readline()
        time.sleep(lines.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_killed_at_random_moments(straight, tmp_path):
    kill_at_random(tmp_path, kills=KILLS)
    run(SMALL, tmp_path)
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_torchrun_killed_at_random_moments(tmp_path):
    run(SMALL, tmp_path / "straight", processes=2)
    kill_at_random(tmp_path / "killed", kills=KILLS, processes=2)
    run(SMALL, tmp_path / "killed", processes=2)
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


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

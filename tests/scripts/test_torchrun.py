"""Several processes: the same run as one, files by one of them, and no process lost for good."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from tests.machine import nodes
from tests.running import (
    ENVIRONMENT,
    LIMIT,
    ROOT,
    assert_same_run,
    checked,
    children,
    command,
    drive,
    dying,
    load,
    wait_for_text,
)
from utils.shown.log import read_log
from utils.training import trainer

pytestmark = pytest.mark.slow

# With dropout, for which each process has random numbers of its own.
SMALL = (
    "-d synthetic --subset 100 -a densenet --depth 10 --growthRate 4 --dropout 0.1"
    " --train-batch 24 --epochs 2 --schedule 9 --lr 0.1 --nr-sparsity 1e-3 --nr-target 0.97"
    " --nr-max-epochs 5 --manualSeed 1"
)
# Without: which activations it takes depends on the number of processes.
SEARCH = (
    "-d synthetic --subset 50 -a resnet --depth 8 --width-mult 0.25 --train-batch 10 --lr 0.01"
    " --nr-sparsity 0.01 --nr-target 0.97 --nr-max-epochs 5 --manualSeed 2"
)
IMAGENET = (
    "--synthetic --subset 20 -a vgg_nr --drop 0 --image-size 32 --width-mult 0.05 -j 1"
    " --train-batch 5 --epochs 1 --schedule 9 --nr-target 0.8 --nr-sparsity-start 1e-3"
    " --nr-max-epochs 5 --manualSeed 1"
)
DYING = dying(3)  # searches of four epochs
KILLED = 7  # batches of training and test, in which a process of imagenet.py is: in its search
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
KILLS = int(os.environ.get("NR_TEST_KILLS", "0"))  # more starts, killed at random moments


@pytest.fixture(scope="module", autouse=True)
def searches_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_epoch", trainer.train_epoch)  # put back in the end
        DYING()
        yield


def run(
    flags: str, folder: Path, script: str = "cifar.py", processes: int = 2, setup=DYING
) -> None:
    """Several processes of torchrun to their end."""
    checked(nodes.torchrun(script, f"{flags} -c {folder}", processes, setup=setup), status=0)


DYING_SOON = dying(1)  # a search of two epochs


def killed_once_and_dying(mark: Path) -> None:
    nodes.killed_once(KILLED, mark)
    DYING_SOON()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes that nothing interrupts; not to be written to."""
    folder = tmp_path_factory.mktemp("two")
    run(SMALL, folder)
    return folder


def test_two_processes_equal_one_within_rounding(tmp_path):
    """For as long as rounding stays small: scales near 0 turn a last digit into a dead channel."""
    one, two = tmp_path / "one", tmp_path / "two"
    drive(SEARCH + " --nr-compress-only", one)
    run(SEARCH + " --nr-compress-only", two)
    rows = [read_log(folder / "log.txt")[:4] for folder in (two, one)]
    for a, b in zip(*rows, strict=True):
        assert a["Phase"] == b["Phase"] == "search"
        assert a["Train Loss"] == pytest.approx(b["Train Loss"], rel=1e-4)
        assert a["Valid Acc."] == b["Valid Acc."]
        assert a["Utilization"] == pytest.approx(b["Utilization"], abs=1e-4)


def test_a_checkpoint_moves_between_numbers_of_processes(two, tmp_path):
    """Two processes, then one, then three: the file of each loads in the next."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    drive(SMALL + " --epochs 3 --resume auto", folder)
    run(SMALL + " --epochs 4 --resume auto", folder, processes=3)
    rows = read_log(folder / "log.txt")
    assert sum(row["Phase"] == "train" for row in rows) == 4
    payload = load(folder / "checkpoint.pth.tar")
    assert not any(name.startswith("module.") for name in payload["state_dict"])
    assert len(payload["rng"]) == 3


def test_stopped_killed_and_started_again_repeats_nothing(two, tmp_path):
    """The same run in the end, bit for bit.

    SIGTERM to the launcher inside an epoch, as a cluster sends it, here a torchrun as a user starts
    it; SIGKILL to it and all its processes; and the death of one of them.
    """
    moments = random.Random(0)
    flags, folder = SMALL + " --resume auto", tmp_path / "run"

    def start(restarts: int = 0) -> tuple[BaseProcess, Path]:
        """The launcher, and the file of what its processes say."""
        job = nodes.Job(Path(mkdtemp(dir=tmp_path)), "cifar.py", nodes=1, restarts=restarts)
        return job.start(0, f"{flags} -c {folder}", DYING), job.screen(0)[0]

    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [sys.executable, *words, *command(flags, folder)[1:]]
    with subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, **PIPES) as process:
        assert any(re.search(r"Epoch: \[2 .*search", line) for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert load(folder / "checkpoint.pth.tar")["partial"] is not None
    launcher, screen = start()
    wait_for_text(screen, r"Epoch: \[3 .*search")
    nodes.kill(launcher)
    for _ in range(KILLS):
        launcher, screen = start()
        wait_for_text(screen, rf"(?:.*\n){{{moments.randint(1, 8)}}}")
        nodes.kill(launcher)
    launcher, screen = start(restarts=2)
    wait_for_text(screen, r"Epoch: \[2 .*train")
    os.kill(children(launcher.pid)[-1], signal.SIGKILL)
    assert nodes.ended(launcher) == [0], screen.read_text()
    assert_same_run(folder, two)


def test_imagenet_searches_rejuvenates_and_survives_a_kill(tmp_path):
    run(IMAGENET, tmp_path / "straight", script="imagenet.py", setup=DYING_SOON)
    flags = f"{IMAGENET} -c {tmp_path}/killed --resume auto"
    setup = partial(killed_once_and_dying, tmp_path / "mark")
    result = nodes.torchrun("imagenet.py", flags, restarts=2, setup=setup)
    assert result.returncode == 0, result.stderr
    assert "Resuming from" in result.stdout
    assert_same_run(tmp_path / "killed", tmp_path / "straight")
    rows = read_log(tmp_path / "straight" / "log.txt")
    assert [row["Phase"] for row in rows[-2:]] == ["search", "train"]


@pytest.mark.parametrize("script, flags", [("cifar.py", SEARCH), ("imagenet.py", IMAGENET)])
def test_processes_that_do_not_divide_a_batch_still_weigh_its_images_equally(
    script, flags, tmp_path
):
    """Batches of 5 images on 2 processes: the momentum is the sum of the same gradients."""
    flags = flags.replace("--train-batch 10", "--train-batch 5")
    flags += " --nr-target 1 --epochs 1 --lr 1e-6"
    one, two = tmp_path / "one", tmp_path / "two"
    drive(flags, one, script=script)
    run(flags, two, script=script)
    buffers = []
    for folder in (one, two):
        state = load(folder / "checkpoint.pth.tar")["optimizer"]["state"]
        buffers.append(torch.cat([entry["momentum_buffer"].ravel() for entry in state.values()]))
    # Equal but for rounding; weighed by halves they differ by a quarter.
    assert (buffers[1] - buffers[0]).norm() < 0.05 * buffers[0].norm()


def test_data_parallel_without_gpus_is_the_cpu(tmp_path):
    result = drive(SMALL + " --gpu-id 0,1 --epochs 1 --nr-target 1", tmp_path)
    if not torch.cuda.is_available():
        assert "No GPU on this machine" in result.stdout

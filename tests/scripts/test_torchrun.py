"""Several processes: the same run as one, files by one of them, and no process lost for good."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.running import ENVIRONMENT, ROOT, assert_same_run, command, load, run
from utils.shown.log import read_log

pytestmark = pytest.mark.slow

SMALL = (
    "-d synthetic --subset 200 -a resnet --depth 8 --width-mult 0.25 --train-batch 10 --epochs 2"
    " --schedule 9 --lr 0.01 --nr-sparsity 0.1 --nr-target 0.97 --nr-max-epochs 30 --manualSeed 2"
)

IMAGENET = (
    "--synthetic --subset 40 -a vgg_nr --drop 0 --image-size 32 --width-mult 0.05 -j 1"
    " --train-batch 5 --epochs 1 --schedule 9 --nr-target 0.8 --nr-sparsity-start 6e-3"
    " --nr-max-epochs 40 --manualSeed 1"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("two")
    run(SMALL, folder, processes=2)
    return folder


def test_two_processes_equal_one_within_rounding(two, tmp_path):
    """For as long as rounding stays small: scales near 0 turn a last digit into a dead channel."""
    run(SMALL, tmp_path)
    rows = [read_log(folder / "log.txt")[:4] for folder in (two, tmp_path)]
    for a, b in zip(*rows, strict=True):
        assert a["Phase"] == b["Phase"] == "search"
        assert a["Train Loss"] == pytest.approx(b["Train Loss"], rel=1e-4)
        assert a["Valid Acc."] == b["Valid Acc."]
        assert a["Utilization"] == pytest.approx(b["Utilization"], abs=1e-4)


def test_a_checkpoint_moves_between_numbers_of_processes(two, tmp_path):
    """Two processes, then one, then three: the file of each loads in the next."""
    for index, processes in enumerate((2, 0, 3)):
        flags = SMALL.replace("--epochs 2", f"--epochs {index + 1}").replace("10", "12", 1)
        run(f"{flags} --resume auto", tmp_path, processes=processes)
    rows = read_log(tmp_path / "log.txt")
    assert sum(row["Phase"] == "train" for row in rows) == 3
    payload = load(tmp_path / "checkpoint.pth.tar")
    assert not any(name.startswith("module.") for name in payload["state_dict"])
    assert len(payload["rng"]) == 3


def test_a_signal_inside_an_epoch_repeats_nothing(two, tmp_path):
    """SIGTERM to the launcher, as a cluster sends it; the same run in the end, bit for bit."""
    words = command(SMALL, tmp_path, processes=2)
    process = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if re.search(r"Epoch: \[2 .*search", line):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert (tmp_path / "checkpoint.pth.tar").exists()
    run(SMALL + " --resume auto", tmp_path, processes=2)
    assert_same_run(tmp_path, two)


def run_with_a_kill(flags: str, folder: Path, script: str) -> None:
    """torchrun --max-restarts with --resume auto, one process killed inside the third epoch."""
    words = command(flags + " --resume auto", folder, script, processes=2)
    words.insert(words.index("--standalone"), "--max-restarts=2")
    process = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if re.search(r"Epoch: \[3 .*search", line):
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            )
            subprocess.run(["kill", "-KILL", children.stdout.split()[-1]], check=True)
            break
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors


def test_a_killed_process_is_started_again(two, tmp_path):
    run_with_a_kill(SMALL, tmp_path, "cifar.py")
    assert_same_run(tmp_path, two)


def test_imagenet_searches_rejuvenates_and_survives_a_kill(tmp_path):
    run(IMAGENET, tmp_path / "straight", script="imagenet.py", processes=2)
    run_with_a_kill(IMAGENET, tmp_path / "killed", "imagenet.py")
    assert_same_run(tmp_path / "killed", tmp_path / "straight")
    rows = read_log(tmp_path / "straight" / "log.txt")
    assert [row["Phase"] for row in rows[-2:]] == ["search", "train"]


@pytest.mark.parametrize("script, flags", [("cifar.py", SMALL), ("imagenet.py", IMAGENET)])
def test_processes_that_do_not_divide_a_batch_still_weigh_its_images_equally(
    script, flags, tmp_path
):
    """Batches of 5 images on 2 processes: the momentum is the sum of the same gradients."""
    flags = flags.replace("--train-batch 10", "--train-batch 5")
    flags += " --nr-target 1 --epochs 1 --lr 1e-6"
    buffers = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        run(flags, folder, script=script, processes=processes)
        state = load(folder / "checkpoint.pth.tar")["optimizer"]["state"]
        buffers.append(torch.cat([entry["momentum_buffer"].ravel() for entry in state.values()]))
    # Equal but for rounding; weighed by halves they differ by a quarter.
    assert (buffers[1] - buffers[0]).norm() < 0.05 * buffers[0].norm()


def test_data_parallel_without_gpus_is_the_cpu(tmp_path):
    result = run(SMALL + " --gpu-id 0,1 --epochs 1 --nr-target 1", tmp_path)
    if not torch.cuda.is_available():
        assert "No GPU on this machine" in result.stdout

"""A job of two nodes, each with its own launcher, over loopback: as one node, and lost nodes."""

import shutil
from collections import Counter
from functools import partial

import pytest

from tests.image_files import pixels_of, write
from tests.machine import nodes
from utils.shown.log import read_log

pytestmark = pytest.mark.slow

CIFAR = (
    "-d synthetic --subset 50 -a resnet --depth 8 --width-mult 0.0625 --train-batch 10"
    " --test-batch 10 --epochs 3 --schedule 2 --nr-target 1 --manualSeed 0"
)
IMAGENET = (
    "-a resnet18_nr --image-size 32 --width-mult 0.0625 -j 0 --train-batch 8 --test-batch 8"
    " --epochs 2 --schedule 9 --nr-target 1 --manualSeed 0"
)
IMAGES = {"train": 40, "val": 8}
STOPPED, LOST = 2, 8  # of 6 batches an epoch, the last for the test; counted from a start


def assert_same_log(first, second) -> None:
    """Up to rounding."""
    rows = [read_log(folder / "log.txt") for folder in (first, second)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys() and a["Phase"] == b["Phase"]
        for name in a.keys() - {"Phase", "Seconds"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run of one node with two processes; not to be written to."""
    folder = tmp_path_factory.mktemp("straight")
    job = nodes.Job(folder, "cifar.py", nodes=1)
    assert job.run(f"{CIFAR} -c {folder}/run") == [0], job.said()
    return folder / "run"


def test_stopped_and_lost_nodes_that_are_started_again_change_nothing(straight, tmp_path):
    """SIGTERM to all launchers, as a cluster sends it; and one node of two is lost.

    The --max-restarts of the other one waits for it; both go on from the folder that they share.
    """
    job = nodes.Job(tmp_path, "cifar.py", restarts=1)
    flags = f"{CIFAR} -c {tmp_path}/run --resume auto"
    assert job.run(flags, flags, setup=partial(nodes.stopped, STOPPED)) == [1, 1], job.said()
    assert "Stopped by SIGTERM; the run is saved" in job.said()
    lost = partial(nodes.lost_once, LOST, tmp_path / "mark")
    job = nodes.Job(tmp_path, "cifar.py", restarts=1)
    first, second = (
        job.start(number, flags, setup) for number, setup in enumerate([nodes.nothing, lost])
    )
    assert nodes.ended(second) == [-9], job.said()
    assert nodes.ended(first, job.start(1, flags, lost)) == [0, 0], job.said()
    assert job.said().count("Resuming from") == 2
    assert_same_log(tmp_path / "run", straight)


def test_two_nodes_are_as_one_and_each_process_opens_only_its_own_images(tmp_path):
    """Over both of them each training image once an epoch, and each test image."""
    for split, count in IMAGES.items():
        for number in range(count):
            write(tmp_path / "data" / split / f"{number % 2}" / f"{number}.png", pixels_of(number))
    runs = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(runs, start=1):
        opened = folder / "opened"
        opened.mkdir(parents=True)
        job = nodes.Job(folder, "imagenet.py", number)
        flags = f"{IMAGENET} --data {tmp_path}/data -c {folder}/run"
        setup = partial(nodes.opened_written, opened)
        assert job.run(*[flags] * number, setup=setup) == [0] * number, job.said()
        names = [Counter((opened / str(rank)).read_text().splitlines()) for rank in range(2)]
        assert sorted((names[0] + names[1]).values()) == [2] * sum(IMAGES.values())
        assert [part.total() for part in names] == [sum(IMAGES.values())] * 2  # half, twice
    assert_same_log(*(folder / "run" for folder in runs))


def test_nodes_without_a_shared_folder_are_refused(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "disk0")
    job = nodes.Job(tmp_path, "cifar.py")
    flags = [f"{CIFAR} --epochs 4 -c {tmp_path}/disk{number} --resume auto" for number in range(2)]
    assert job.run(*flags) == [1, 1], job.said()
    (line,) = {line for line in job.said().splitlines() if "process 0 found" in line}
    assert "disk0/checkpoint.pth.tar of epoch 3" in line and "no checkpoint on" in line
    assert read_log(tmp_path / "disk0" / "log.txt") == read_log(straight / "log.txt")

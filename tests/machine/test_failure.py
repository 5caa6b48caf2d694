"""machine.failure: what goes wrong in one process ends the whole job, with one line."""

import os
import re

import pytest
import torch.distributed as dist

from tests.machine import groups
from utils.machine import distributed
from utils.machine.failure import Failure


def lines_of(fault: str, folder) -> list[str]:
    """What a job of two processes with this fault says of it on the error stream."""
    result = groups.start("tests.machine.failing", fault, folder)
    assert result.returncode != 0
    launchers = re.compile(r"torch/(distributed/elastic|multiprocessing)/")
    return [line for line in result.stderr.splitlines() if line and not launchers.search(line)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "memory",
            r"out of memory \(CUDA out of memory. Tried to allocate 20.00 MiB.\): a smaller",
        ),
        ("disk", "could not be written: No space left on device"),
        # the second of one process, and with it the third of all: whichever looks first says so
        ("loss", "the loss is not finite at epoch 1, batch (2|3), learning rate 0.1"),
        ("flags", "nothing.pth.tar: No such file or directory"),
        ("killed", "another process of this job ended"),
    ],
)
def test_a_failure_of_one_process_ends_the_job_with_one_line(tmp_path, fault, said):
    lines = lines_of(fault, tmp_path)
    assert len(lines) == 1 and re.search(said, lines[0]), lines
    assert fault != "memory" or "--train-batch" in lines[0]


@pytest.mark.slow
def test_a_fault_of_the_program_is_shown_whole_and_once(tmp_path):
    lines = lines_of("program", tmp_path)
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: a fault of the program"
    assert sum("Traceback" in line for line in lines) == 1


@pytest.mark.slow
def test_processes_that_found_different_checkpoints_are_refused(tmp_path):
    groups.succeed("tests.machine.failing", "none", tmp_path / "machine0")
    (line,) = lines_of("folders", tmp_path)
    assert "process 0 found" in line and "machine0/checkpoint.pth.tar of epoch 2, sha256" in line
    assert "process 1 no checkpoint on" in line
    assert not (tmp_path / "machine1").exists()


def test_only_the_first_process_that_fails_speaks(monkeypatch, group):
    assert Failure.is_first() and Failure.is_first()  # no job: every failure is the first
    distributed.start([0])
    assert Failure.is_first() and not Failure.is_first()
    distributed.stop()
    assert Failure.store is None


def test_without_the_store_a_process_speaks_for_itself(monkeypatch):
    class Gone:
        def add(self, key: str, amount: int) -> int:
            raise dist.DistNetworkError("gone")

    monkeypatch.setattr(Failure, "store", Gone())
    assert Failure.is_first()


def test_one_process_alone_is_not_ended(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("ended"))
    Failure.end(1)

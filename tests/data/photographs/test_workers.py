"""data.photographs: broken images and lost workers."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.data.photographs.sets import (
    SIZE,
    same,
    test_batches,
    train_batches,
)
from tests.image_files import message
from utils.data import photographs
from utils.errors import DataError


def garbage(file: Path) -> str:
    file.write_bytes(b"nothing\nlike an image")
    return "a broken image"


def truncated(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-100])
    return "a broken image"


def gone(file: Path) -> str:
    file.unlink()
    return "No such file or directory"


@pytest.mark.parametrize("damage", [garbage, truncated, gone])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(root, train, test, workers, damage):
    for split in ("train", "val"):
        file = root / split / "n02/1.png"
        words = damage(file)
        series = (
            train_batches(train, workers).epoch(0)
            if split == "train"
            else test_batches(test, workers)
        )
        text = message(list, series)
        assert text.startswith(f"{file}: {words}") and "Traceback" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_before_a_broken_image_are_there(root, test, workers):
    wanted = list(test_batches(test))[:2]
    (root / "val/n03/0.png").write_bytes(b"broken")
    found = []
    message(found.extend, test_batches(test, workers))
    assert same(wanted, found)


def workers_of(series) -> list[multiprocessing.Process]:
    return series.pipeline.loader._iterator._workers


def test_the_workers_stay_and_end_with_their_batches(train):
    series = train_batches(train, workers=2)
    list(series.epoch(0))
    processes = workers_of(series)
    list(series.epoch(1))
    assert workers_of(series) == processes
    assert all(process.is_alive() for process in processes)
    del series
    assert not any(process.is_alive() for process in processes)


def test_any_number_of_workers_is_the_users_choice(train, recwarn):
    many = 1 + os.cpu_count()
    assert same(train_batches(train).epoch(0), train_batches(train, many).epoch(0))
    assert not recwarn.list


@pytest.fixture
def impatient(monkeypatch):
    """Workers are looked after more often than every five seconds."""
    look = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.2,))


def test_a_worker_that_is_killed_is_an_input_error(train, monkeypatch, impatient):
    monkeypatch.setattr(
        photographs.Photographs, "image", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    text = message(list, train_batches(train, workers=1).epoch(0))
    assert text.startswith("--workers 1: DataLoader worker (pid")


@pytest.mark.parametrize("idle", [False, True])
def test_a_worker_that_is_killed_does_not_disturb_what_the_main_process_does(
    train, impatient, idle
):
    """Whenever it comes; the batch that is missing then says it, in one line."""
    series = train_batches(train, workers=2, batch_size=2)
    wanted, epoch = list(series.epoch(0)), series.epoch(1)
    assert idle or next(epoch)
    for process in workers_of(series):
        process.kill()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is None:
            pass
    for _ in range(1000):  # torch's own handler would raise here
        pass
    with pytest.raises(DataError) as error:
        while True:
            list(epoch)
            epoch = series.epoch(1)
    text = str(error.value)
    assert re.fullmatch(
        r"--workers 2: DataLoader worker \(pid \d+\) was ended by SIGKILL, .*\(0: none\)", text
    )
    assert len(wanted) == 6


def test_a_programming_error_in_a_worker_keeps_its_traceback(train, monkeypatch):
    monkeypatch.setattr(
        photographs.Photographs, "image", lambda *_: torch.empty(2) @ torch.empty(3)
    )
    with pytest.raises(RuntimeError, match="Traceback"):
        list(train_batches(train, workers=1).epoch(0))


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_workers_leave_the_stop_signals_to_the_main_process(train, name):
    series = train_batches(train, workers=2, batch_size=2)
    wanted = list(series.epoch(1))
    epoch = series.epoch(1)
    found = [next(epoch)]
    processes = workers_of(series)
    numbers = [str(process.pid) for process in processes]
    subprocess.run(["kill", f"-{name}", *numbers], check=True)  # it is not their parent
    found += list(epoch)
    assert same(wanted, found)
    assert all(process.is_alive() for process in processes)


def test_workers_end_when_the_main_process_ends_them(train):
    series = train_batches(train, workers=2)
    list(series.epoch(0))
    processes = workers_of(series)
    signal_of_loader = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it would raise
    try:
        for process in processes:
            process.terminate()  # as the interpreter does with daemons when it exits
            process.join(timeout=20)
            assert process.exitcode == 0
    finally:
        signal.signal(signal.SIGCHLD, signal_of_loader)


def test_what_a_worker_gets_can_be_pickled(train):
    for images in (train, photographs.make_synthetic(SIZE, 10)[0]):
        decoder = photographs.Decoder(images, photographs.train_transform(SIZE), seed=1)
        copy = pickle.loads(pickle.dumps(decoder))
        assert torch.equal(copy.decode(1, 2), decoder.decode(1, 2))

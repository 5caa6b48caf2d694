"""Saving beside the training."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from tests.training.run.small_runs import AFTER, BATCHES, BEST, LAST, PLAIN, go, interrupt, state_in
from utils.errors import InputError
from utils.shown.log import read_log
from utils.training import checkpoint, engine, folder, script, trainer
from utils.training.signals import Stopped


@pytest.fixture
def slowly(monkeypatch):
    """Let every checkpoint wait for the returned event, and be written a while after it."""
    event, save = threading.Event(), checkpoint.save

    def slow(*arguments) -> None:
        assert event.wait(60), "the run waits for its checkpoint"
        time.sleep(0.05)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", slow)
        yield event
        event.set()


def test_the_next_epoch_trains_while_the_last_one_is_saved(slowly, monkeypatch, tmp_path):
    """Up to the end of its training: then the run asks for the best, or saves again."""
    batch_sums, done = engine.batch_sums, []

    def counted(*arguments):
        done.append((tmp_path / LAST).exists())
        if len(done) == BATCHES + 3:
            slowly.set()
        return batch_sums(*arguments)

    monkeypatch.setattr(engine, "batch_sums", counted)
    go(tmp_path, f"{PLAIN} --epochs 2")
    assert not any(done[: BATCHES + 3])
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 2
    assert len(read_log(tmp_path / "log.txt")) == 2


def test_the_best_is_looked_for_when_what_is_being_saved_is_there(
    slowly, accuracies, monkeypatch, tmp_path
):
    """Else a lost best would be assumed, and the next network kept in its place."""
    has_best = folder.RunFolder.has_best

    def asked(run_folder) -> bool:
        slowly.set()
        found = has_best(run_folder)
        slowly.clear()
        return found

    monkeypatch.setattr(folder.RunFolder, "has_best", asked)
    accuracies(30, 20, 25)
    go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 3


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_disk_that_is_full_ends_the_run_at_the_next_save(
    epochs, monkeypatch, tmp_path, capsys, epoch
):
    """What was there before stays whole. At the last epoch, it is the end that says so."""
    save_last = checkpoint.save_last

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(where: Path, payload: dict, best: bool) -> None:
        if payload["epoch"] == epoch:
            monkeypatch.setattr(os, "fsync", full)
        save_last(where, payload, best)

    monkeypatch.setattr(checkpoint, "save_last", save)
    assert script.exit_status(lambda: go(tmp_path, f"{PLAIN} --epochs 3")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(".pth.tar: could not be written: No space left on device")
    assert len(epochs.rows) == min(epoch + 1, 3)
    assert not list(tmp_path.glob(".*.tmp"))
    assert (tmp_path / LAST).exists() == (epoch > 1)
    if epoch > 1:
        assert checkpoint.read(tmp_path / LAST)["epoch"] == epoch - 1


def test_a_loss_that_is_not_finite_leaves_the_epoch_before_it(slowly, monkeypatch, tmp_path):
    """The run ends while that is being written."""
    train_epoch = trainer.train_epoch

    def train(model, batches, epoch, *rest):
        if epoch == 1:
            slowly.set()
            raise InputError("the loss is not finite")
        return train_epoch(model, batches, epoch, *rest)

    monkeypatch.setattr(trainer, "train_epoch", train)
    with pytest.raises(InputError, match=r"^the loss is not finite$"):
        go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 1
    assert len(read_log(tmp_path / "log.txt")) == 1


def test_every_other_end_waits_for_what_is_being_saved(slowly, epochs, monkeypatch, tmp_path):
    """A search that gives up, one that only compresses, and a signal."""
    slowly.set()
    assert go(tmp_path / "a", "--nr-max-epochs 1") == script.GAVE_UP
    assert checkpoint.read(tmp_path / "a" / LAST)["epoch"] == 1
    assert go(tmp_path / "b", "--nr-compress-only") == 0
    assert state_in(tmp_path / "b").phase == "train"
    assert state_in(tmp_path / "b", AFTER) == state_in(tmp_path / "b")
    interrupt(monkeypatch, 7)
    with pytest.raises(Stopped) as stopped:
        go(tmp_path / "c")
    assert stopped.value.saved
    assert len(checkpoint.read(tmp_path / "c" / LAST)["partial"]) == 2

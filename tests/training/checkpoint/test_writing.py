"""training.checkpoint: the last, the one before it and the best, and failures to write."""

import io
import os
import resource
import tracemalloc

import pytest
import torch

from nr.files import archive
from tests.training.checkpoint.payloads import (
    names,
    small,
)
from utils.errors import InputError
from utils.training import checkpoint


def test_the_last_one_keeps_the_one_before_it(tmp_path):
    last, previous = tmp_path / "checkpoint.pth.tar", tmp_path / "checkpoint.prev.pth.tar"
    for epoch in range(3):
        before = last.read_bytes() if epoch else None
        checkpoint.save_last(tmp_path, small(epoch=epoch))
        assert checkpoint.read(last)["epoch"] == epoch
        assert (previous.read_bytes() if epoch else None) == before
    assert checkpoint.read(previous)["epoch"] == 1
    assert names(tmp_path) == [previous.name, last.name]


def test_the_best_one_is_the_last_one_until_the_next(tmp_path):
    names = ("checkpoint.prev.pth.tar", "checkpoint.pth.tar", "model_best.pth.tar")
    paths = [tmp_path / name for name in names]
    seen = []
    for epoch, best in enumerate([True, True, False, False]):
        checkpoint.save_last(tmp_path, small(epoch=epoch), best=best)
        seen.append([checkpoint.read(path)["epoch"] if path.exists() else None for path in paths])
    assert seen == [[None, 0, 0], [0, 1, 1], [1, 2, 1], [2, 3, 1]]


def test_whoever_edits_one_in_place_leaves_the_others_whole(tmp_path):
    last, best = tmp_path / "checkpoint.pth.tar", tmp_path / "model_best.pth.tar"
    previous = tmp_path / "checkpoint.prev.pth.tar"
    for epoch, is_best in enumerate([True, False, True, True]):
        checkpoint.save_last(tmp_path, small(epoch=epoch), best=is_best)
        paths = [path for path in (last, best, previous) if path.exists()]
        assert len({path.stat().st_ino for path in paths}) == len(paths)
    with open(best, "r+b") as file:
        file.write(b"edited")
    assert [checkpoint.read(path)["epoch"] for path in (last, previous)] == [3, 2]


def test_a_copy_of_a_checkpoint_is_no_link(tmp_path, path):
    checkpoint.save(path, small(epoch=4))
    checkpoint.keep_as(path, tmp_path / "copy")
    path.write_bytes(b"edited")
    assert checkpoint.read(tmp_path / "copy")["epoch"] == 4


def test_a_left_over_link_of_a_killed_run_does_not_matter(tmp_path):
    (tmp_path / ".checkpoint.prev.pth.tar.tmp").write_bytes(b"left over")
    (tmp_path / ".checkpoint.pth.tar.tmp").write_bytes(b"left over")
    for epoch in range(2):
        checkpoint.save_last(tmp_path, small(epoch=epoch))
    assert checkpoint.read(tmp_path / "checkpoint.prev.pth.tar")["epoch"] == 0
    assert names(tmp_path) == ["checkpoint.prev.pth.tar", "checkpoint.pth.tar"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_full_disk_leaves_what_was_there(tmp_path, seeds):
    for epoch in range(seeds):
        checkpoint.save_last(tmp_path, small(epoch=epoch))
    last = (tmp_path / "checkpoint.pth.tar").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(last) // 2, hard))
    try:
        with pytest.raises(InputError, match=r"checkpoint\.pth\.tar: could not be written: F"):
            checkpoint.save_last(tmp_path, small(epoch=7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == last
    assert checkpoint.read(tmp_path / "checkpoint.prev.pth.tar")["epoch"] == seeds - 1
    assert names(tmp_path) == ["checkpoint.prev.pth.tar", "checkpoint.pth.tar"]


def test_after_a_full_disk_nothing_is_left_over(monkeypatch, tmp_path):
    """The failure leaves last and previous as one file; the next save links it once more."""
    checkpoint.save_last(tmp_path, small())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", raise_input_error)
        with pytest.raises(InputError):
            checkpoint.save_last(tmp_path, small(epoch=1))
    checkpoint.save_last(tmp_path, small(epoch=2))
    assert names(tmp_path) == ["checkpoint.prev.pth.tar", "checkpoint.pth.tar"]


def raise_input_error(*_: object) -> None:
    raise InputError("full")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_to_write_leaves_the_older_file_whole(monkeypatch, path, call):
    checkpoint.save(path, small())
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError) as error:
        checkpoint.save(path, small(epoch=7))
    assert str(error.value) == f"{path}: could not be written: Input/output error"
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


def test_a_file_system_without_hard_links_will_do(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise PermissionError(1, "Operation not permitted")  # as vfat, exfat and some mounts say

    monkeypatch.setattr(os, "link", fail)
    for epoch in range(2):
        checkpoint.save_last(tmp_path, small(epoch=epoch))
    assert checkpoint.read(tmp_path / "checkpoint.pth.tar")["epoch"] == 1
    assert checkpoint.read(tmp_path / "checkpoint.prev.pth.tar")["epoch"] == 0


def test_a_previous_one_that_cannot_be_replaced_is_told_in_one_line(tmp_path):
    checkpoint.save_last(tmp_path, small())
    (tmp_path / "checkpoint.prev.pth.tar").mkdir()
    with pytest.raises(InputError, match=r"checkpoint\.prev\.pth\.tar: could not be written"):
        checkpoint.save_last(tmp_path, small(epoch=1))


@pytest.mark.parametrize("after", [0, 1, 10, 1000])
def test_a_disk_that_fills_at_any_write_is_told_in_one_line(monkeypatch, path, after):
    """Also while torch ends its archive, where it would make an error of its own of it."""
    left = after

    class Full(io.BytesIO):
        def write(self, data):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")
            return super().write(data)

        def fileno(self):
            return 0

    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        counted, left = Full(), 10**6
        torch.save(small(), archive.Sealing(counted))
        writes = 10**6 - left
        left = after if after < 1000 else writes - 1
        patch.setattr("builtins.open", lambda *_: Full())
        checkpoint.save(path, small())
    assert str(error.value) == f"{path}: could not be written: No space left on device"


def test_saving_takes_no_memory_for_the_archive(path):
    """Of Python's own; torch's tensors are not counted."""
    payload = small(state_dict={"weight": torch.zeros(2**22)})  # 16 MiB
    tracemalloc.start()
    checkpoint.save(path, payload)
    checkpoint.save_last(path.parent, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2**24 and peak < 2**21

"""training.checkpoint: all damage, and files of other kinds."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nr
from tests.helpers import same_tensors
from tests.training.checkpoint.payloads import refusal, small
from utils.training import checkpoint
from utils.training.checkpoint import CheckpointError


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_that_is_not_there(path):
    assert refusal(path) == "No such file or directory"
    assert refusal(path, nr.load) == "No such file or directory"


def test_a_folder_in_its_place(tmp_path):
    assert refusal(tmp_path) == "Is a directory"


@pytest.mark.parametrize("length", [0, 1, 2, 70, 71, 72, 73, 100, 1000, 4096, 10000])
def test_a_truncated_beginning(path, sealed, length):
    assert length < len(sealed)
    path.write_bytes(sealed[:length])
    refusal(path)


@pytest.mark.parametrize("missing", [1, 2, 64, 70, 71, 72, 73, 74, 93, 94, 1000])
def test_a_truncated_end(path, sealed, missing):
    """71 bytes are the seal, the 22 before them end the zip archive."""
    path.write_bytes(sealed[:-missing])
    refusal(path)


@pytest.mark.parametrize("length", [1, 71, 1000])
def test_a_missing_beginning(path, sealed, length):
    path.write_bytes(sealed[length:])
    refusal(path)


@pytest.mark.parametrize("start", [0, 4096, 8192, -4096 - 71])
def test_a_block_of_zeros(path, sealed, start):
    """A block that the disk lost."""
    data = bytearray(sealed)
    data[start : start + 512] = bytes(512)
    path.write_bytes(data)
    assert len(data) == len(sealed) and data != sealed
    assert refusal(path) == "damaged, or not a checkpoint: its checksum does not match"


def test_two_files_mixed(path, sealed):
    checkpoint.save(path, small(seed=1))
    other = path.read_bytes()
    assert len(other) == len(sealed)
    path.write_bytes(sealed[: len(sealed) // 2] + other[len(other) // 2 :])
    refusal(path)


@pytest.mark.parametrize("end", [b"x", b"\0", b"\n", b"PK", bytes(100)], ids=repr)
def test_something_after_the_end(path, sealed, end):
    """Refused, or else the content is the same: the archive in it is whole."""
    path.write_bytes(sealed + end)
    try:
        found = checkpoint.read(path)
    except CheckpointError:
        return
    assert end.endswith(b"\0\0")
    assert same_tensors(found["state_dict"], small()["state_dict"])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_never_loads(sealed, tmp_path_factory, data):
    position = data.draw(st.integers(0, len(sealed) - 1), label="position")
    mask = data.draw(st.integers(1, 255), label="mask")
    damaged = bytearray(sealed)
    damaged[position] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.pth.tar"
    path.write_bytes(damaged)
    refusal(path)


@pytest.mark.parametrize("position", [*range(-93, 0), 0, 1, 2, 3])
def test_every_byte_of_the_ends_matters(path, sealed, position):
    """The first bytes, the end of the zip archive and the seal."""
    damaged = bytearray(sealed)
    damaged[position] ^= 1
    path.write_bytes(damaged)
    refusal(path)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", bytes(1000), b"no checkpoint\n", b"sha256:" + b"0" * 64], ids=len
)
def test_a_file_of_another_kind(path, data):
    path.write_bytes(data)
    refusal(path)
    refusal(path, nr.load)


@pytest.mark.parametrize("how", ["pickle", "legacy", "zip", "sealed"])
def test_code_in_a_pickle_is_not_executed(path, how):
    """By itself, in torch's old and new format, and with a right seal."""
    trap = path.parent / "trap"
    payload = small() | {"run": Evil(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Evil(trap)))
    elif how == "sealed":
        checkpoint.save(path, payload)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "zip")
    refusal(path)
    refusal(path, nr.load)
    assert not trap.exists()
    if how != "legacy":
        execute(path, how)
        assert trap.exists()  # the trap works where it is allowed to


def execute(path: Path, how: str) -> None:
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("save", [torch.save, lambda payload, path: checkpoint.save(path, payload)])
@pytest.mark.parametrize(
    "payload",
    [
        {},
        [],
        7,
        "text",
        None,
        torch.zeros(3),
        {"model": {"weight": torch.zeros(3)}},
        {"epoch": 1, "arch": "vgg19_bn", "state_dict": {}, "acc": 0, "best_acc": 0},
    ],
    ids=repr,
)
def test_a_foreign_file_of_torch(path, payload, save):
    save(payload, path)
    assert refusal(path).startswith("not a checkpoint of this program: no 'format' in it")


@pytest.mark.parametrize("key", checkpoint.KEYS)
def test_a_missing_key_is_named(path, key):
    payload = small()
    del payload[key]
    checkpoint.save(path, payload)
    assert refusal(path) == f"not a checkpoint of this program: no {key!r} in it"


@pytest.mark.parametrize("number", [0, 3, "1", None, [1]], ids=repr)
def test_another_format_is_refused(path, number):
    checkpoint.save(path, small(format=number))
    assert refusal(path) == f"format {number!r}, expected 2"

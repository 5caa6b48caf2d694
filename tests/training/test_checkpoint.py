"""training.checkpoint: there and back, all damage, structure, failures to write, streams."""

import copy
import io
import os
import pickle
import random
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
import nr
from nr.files import archive
from tests.helpers import MODES, batch, described, dropped, logits_of, same_tensors, worn
from utils.errors import InputError
from utils.training import checkpoint
from utils.training.checkpoint import CheckpointError

SPECS = {  # how models.build makes these networks of helpers.FAMILIES
    "vgg": ("vgg11_bn", {"width_mult": 1 / 16}),
    "basic": ("resnet", {"depth": 14, "width_mult": 0.25}),
    "dense": ("densenet", {"depth": 16, "growth_rate": 4}),
}
SMALL = ("densenet", {"depth": 10, "growth_rate": 2})  # 768 parameters
REBUILDS = ["before", *MODES, "scratch"]
CASES = [(family, how) for family in SPECS for how in REBUILDS]


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def payload_of(model, arch: str, options: dict, **changes) -> dict:
    """Everything that utils.training.run puts in a checkpoint, in plain values."""
    return {
        "format": 2,
        "epoch": 3,
        "arch": arch,
        "acc": 12.5,
        "best_acc": 25.0,
        "state_dict": model.state_dict(),
        "optimizer": nr.SGD(model, lr=0.1).state_dict(),
        "network": {"family": "cifar", "arch": arch, "options": options},
        "structure": nr.structure(model),
        "run": {"phase": "search", "seed": 1, "epoch": 3, "rows": [{"Phase": "search"}]},
        "partial": None,
        "args": {"lr": 0.1, "schedule": [150, 225], "resume": None, "nr_flops": False},
        "rng": checkpoint.rng_state(),
        **changes,
    }


def small(seed: int = 0, **changes) -> dict:
    """The payload of a very small network; ``changes`` replace entries."""
    torch.manual_seed(seed)
    arch, options = SMALL
    return payload_of(models.build("cifar", arch, **options), arch, options, **changes)


def rebuilt(family: str, how: str):
    """A network with dead channels and a dead branch, or what rejuvenation made of it."""
    model = worn(family)
    if how != "before":
        nr.rejuvenate(model, **({"from_scratch": True} if how == "scratch" else {"cross": how}))
    return model


def older(model) -> dict:
    """What a file of format 1 says about the shapes of ``model``."""
    found = described(nr.structure(model))
    forms = [node["form"] for node in list(found.values())[1:]]
    return {
        "form": forms[0],
        "widths": {name: node["out_channels"] for name, node in found.items()},
        "dropped": dropped(model),
    }


def small_older(**changes) -> dict:
    """The payload of a very small network in format 1."""
    arch, options = SMALL
    model = models.build("cifar", arch, **options)
    return small(format=1, structure=older(model)) | changes


def refusal(path: Path, read=checkpoint.read) -> str:
    """The message of the error that ``read`` must raise: one line that begins with the file."""
    with pytest.raises(nr.FileError if read is nr.load else CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> bytes:
    """The bytes of a small checkpoint."""
    path = tmp_path_factory.mktemp("sealed") / "checkpoint.pth.tar"
    checkpoint.save(path, small())
    return path.read_bytes()


# There and back.


def test_everything_comes_back(path):
    payload = small()
    checkpoint.save(path, payload)
    found = checkpoint.read(path)
    assert found.keys() == payload.keys()
    for key in payload.keys() - {"state_dict", "rng"}:
        assert found[key] == payload[key]
    assert same_tensors(found["state_dict"], payload["state_dict"])
    assert names(path.parent) == [path.name]


def test_plain_torch_load_reads_it_with_weights_only(path):
    payload = small()
    checkpoint.save(path, payload)
    found = torch.load(path, weights_only=True)
    assert same_tensors(found["state_dict"], payload["state_dict"])
    assert found["network"] == payload["network"]


def test_a_path_may_be_text(path):
    checkpoint.save(path, small())
    assert checkpoint.read(str(path))["epoch"] == 3


def test_upstreams_keys_are_in_it(path):
    checkpoint.save(path, small())
    upstream = {"epoch", "arch", "state_dict", "acc", "best_acc", "optimizer"}
    assert upstream <= checkpoint.read(path).keys()


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_loaded_network_has_the_same_logits(path, family, how):
    """Networks with dead channels and a dead branch, before and after rejuvenation."""
    model = rebuilt(family, how)
    checkpoint.save(path, payload_of(model, *SPECS[family]))
    images, _ = batch(count=4, size=32)
    loaded = nr.load(path)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(images), logits_of(model, images))
    assert loaded.streams == (2 if how in MODES else 1)
    assert nr.structure(loaded) == nr.structure(model)


def test_a_loaded_network_can_be_trained_on(path):
    checkpoint.save(path, small())
    model = nr.load(str(path))
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    images, _ = batch(count=2, size=32)
    before = copy.deepcopy(model.state_dict())
    model.train()(images).sum().backward()
    nr.SGD(model, lr=0.1).step()
    moved = [n for n, v in model.named_parameters() if not torch.equal(v, before[n])]
    assert len(moved) > 10


@pytest.mark.parametrize("family", ["vgg", "basic"])
def test_a_module_prefix_is_accepted(path, family):
    """Saved again with torch.save from a network inside DataParallel: no seal, a prefix."""
    model = worn(family)
    weights = torch.nn.DataParallel(model).state_dict()
    assert all(name.startswith("module.") for name in weights)
    torch.save(payload_of(model, *SPECS[family], state_dict=weights), path)
    images, _ = batch(count=2, size=32)
    assert torch.equal(nr.load(path)(images), logits_of(model, images))


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_file_with_counts_of_batches_loads(path, family, how):
    """Earlier versions saved torch's count beside the running statistics."""
    model = rebuilt(family, how)
    state = dict(model.state_dict())
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(5)
    checkpoint.save(path, payload_of(model, *SPECS[family], state_dict=state))
    assert same_tensors(nr.load(path).state_dict(), model.state_dict())


def test_a_sealed_file_with_a_prefix_loads_too(path):
    payload = small()
    weights = {f"module.{name}": value for name, value in payload["state_dict"].items()}
    checkpoint.save(path, payload | {"state_dict": weights})
    assert same_tensors(nr.load(path).state_dict(), payload["state_dict"])


# Damage.


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


# Files of other kinds.


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


# Networks that do not fit.


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_file_of_format_1_has_the_same_logits(path, family, how):
    model = worn(family)
    if how != "before":
        options = {"from_scratch": True} if how == "scratch" else {"cross": how}
        nr.rejuvenate(model, **options)
    payload = payload_of(model, *SPECS[family], format=1, structure=older(model))
    checkpoint.save(path, payload)
    images, _ = batch(count=4, size=32)
    loaded = checkpoint.load_network(path)
    assert torch.equal(loaded(images), logits_of(model, images))
    assert nr.structure(loaded) == nr.structure(model)
    assert refusal(path, nr.load).startswith("its network cannot be rebuilt: structure: ")


def wider(structure: dict) -> dict:
    name = next(iter(structure["widths"]))
    widths = {n: [w[0] + 1] if n == name else w for n, w in structure["widths"].items()}
    return structure | {"widths": widths}


def fewer(structure: dict) -> dict:
    names = list(structure["widths"])[:-1]
    return structure | {"widths": {name: structure["widths"][name] for name in names}}


@pytest.mark.parametrize(
    "change",
    [
        wider,
        fewer,
        lambda structure: structure | {"form": "removed"},
        lambda structure: structure | {"form": "unknown"},
        lambda structure: structure | {"dropped": ["features.block1.0"]},
        lambda structure: structure | {"dropped": ["nothing"]},
        lambda structure: structure | {"widths": []},
        lambda structure: {"form": "plain"},
        lambda structure: None,
        lambda structure: [],
    ],
)
def test_a_structure_that_does_not_fit_the_weights(path, change):
    payload = small_older()
    checkpoint.save(path, payload | {"structure": change(payload["structure"])})
    assert refusal(path, checkpoint.load_network).startswith("its network cannot be rebuilt: ")


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "resnet", "options": {"depth": 8}},
        {"arch": "vgg11_bn", "options": {}},
        {"arch": "unknown"},
        {"family": "unknown"},
        {"options": {"depth": 16, "growth_rate": 2}},
        {"options": {"depth": 10, "growth_rate": 2, "num_classes": 100}},
        {"options": {"depth": 11}},
        {"options": {"depth": "10"}},
        {"options": {"unknown": 1}},
        {"options": None},
    ],
    ids=str,
)
def test_another_network_is_refused(path, change):
    payload = small_older()
    checkpoint.save(path, payload | {"network": payload["network"] | change})
    assert refusal(path, checkpoint.load_network).startswith("its network cannot be rebuilt: ")


def without_first(weights: dict) -> dict:
    return dict(list(weights.items())[1:])


def reshaped(weights: dict) -> dict:
    name, value = next(iter(weights.items()))
    return weights | {name: value[:-1]}


@pytest.mark.parametrize(
    "change",
    [
        without_first,
        reshaped,
        lambda weights: weights | {"extra": torch.zeros(1)},
        lambda weights: {},
        lambda weights: dict.fromkeys(weights, 0.5),
        lambda weights: None,
        lambda weights: list(weights),
        lambda weights: {name: value.long() for name, value in weights.items()},
        lambda weights: {name: value.to("meta") for name, value in weights.items()},
        lambda weights: {n: torch.zeros(()).expand(v.shape) for n, v in weights.items()},
        lambda weights: {name: value.to_sparse() for name, value in weights.items()},
        lambda weights: dict(enumerate(weights.values())),
    ],
)
def test_weights_that_do_not_fit_are_refused(path, change):
    payload = small()
    checkpoint.save(path, payload | {"state_dict": change(payload["state_dict"])})
    assert refusal(path, nr.load).startswith("its network cannot be rebuilt: ")


# Writing.


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


# Random generators.


def drawn() -> list[float]:
    """Draws of the three generators; the normal ones of Python and numpy are made in pairs."""
    torchs = torch.rand(3).tolist() + torch.randn(2).tolist()
    numpys = [*np.random.random(3).tolist(), np.random.randn()]
    return torchs + numpys + [random.random(), random.gauss(0, 1), random.randrange(10**9)]


def test_the_generators_go_on_where_they_were(path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    drawn()
    checkpoint.save(path, small(seed=4, rng=checkpoint.rng_state()))
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    first = drawn()
    assert drawn() != first
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    assert drawn() == first


def test_the_stream_is_that_of_the_moment_of_saving(path):
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    drawn()
    state = checkpoint.rng_state()
    expected = drawn()
    checkpoint.save(path, small(rng=state))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert drawn() != expected
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    assert drawn() == expected


def test_generators_of_gpus_are_put_back_only_where_as_many_are_here(monkeypatch):
    put_back = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    state = checkpoint.rng_state()
    for count in range(4):
        checkpoint.set_rng_state(state | {"cuda": [state["torch"]] * count})
    assert [len(states) for states in put_back] == [2]

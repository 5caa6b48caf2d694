"""CIFAR-10 and CIFAR-100 from torchvision: downloads, and what is said where they fail."""

import io
import pickle
import tarfile
import urllib.request
from hashlib import md5
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from tests.image_files import message
from utils.data import torchvision_cifar
from utils.data.sets import load_cifar


@pytest.fixture
def small_cifar(tmp_path, monkeypatch) -> tuple[Path, type[CIFAR10], dict]:
    """A folder with the archive of a CIFAR-10 of 20 + 10 images, its class, and its arrays."""
    arrays = {
        name: np.random.default_rng(i).integers(0, 256, (10, 3072), np.uint8)
        for i, name in enumerate(("batch_1", "batch_2", "test_batch"))
    }
    files = {
        name: {"data": pixels, "labels": [9 - i for i in range(10)]}
        for name, pixels in arrays.items()
    }
    files["meta"] = {"label_names": [f"class{i}" for i in range(10)]}
    dumped = {name: pickle.dumps(content) for name, content in files.items()}
    sums = {name: md5(content).hexdigest() for name, content in dumped.items()}
    folder = tmp_path / "cifar"
    folder.mkdir()
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        for name, content in dumped.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    class Small(CIFAR10):
        tgz_md5 = md5((folder / CIFAR10.filename).read_bytes()).hexdigest()
        train_list = [["batch_1", sums["batch_1"]], ["batch_2", sums["batch_2"]]]  # noqa: RUF012
        test_list = [["test_batch", sums["test_batch"]]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "label_names", "md5": sums["meta"]}  # noqa: RUF012

    monkeypatch.setitem(torchvision_cifar.KINDS, "cifar10", Small)
    return folder, Small, arrays


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*args, **options):
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_cifar_is_unpacked_and_loaded_quietly(small_cifar, no_network, capfd):
    folder, small, arrays = small_cifar
    train, test = load_cifar("cifar10", str(folder), "cpu")
    assert capfd.readouterr() == (f"Fetching {small.filename} into {folder}\n", "")
    images = np.concatenate([arrays["batch_1"], arrays["batch_2"]]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.from_numpy(images))
    assert torch.equal(test.images.flatten(1), torch.from_numpy(arrays["test_batch"]))
    assert test.labels.tolist() == list(range(9, -1, -1)) and test.labels.dtype == torch.int64
    assert train.classes == tuple(f"class{i}" for i in range(10))
    load_cifar("cifar10", str(folder), "cpu")
    assert capfd.readouterr() == ("", "")


def test_a_download_draws_no_bar(small_cifar, monkeypatch, capfd):
    folder, small, _ = small_cifar
    content = (folder / small.filename).read_bytes()
    (folder / small.filename).unlink()

    class Response(io.BytesIO):
        url, length = None, len(content)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content))
    train, _ = load_cifar("cifar10", str(folder), "cpu")
    assert len(train) == 20
    assert capfd.readouterr() == (f"Fetching {small.filename} into {folder}\n", "")


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_no_network_says_what_to_fetch_and_where_to_put_it(tmp_path, no_network, name, kind, capfd):
    text = message(load_cifar, name, str(tmp_path / "data"), "cpu")
    assert f"{tmp_path / 'data' / kind.filename} is not there" in text
    assert f"fetch {kind.url} (md5 {kind.tgz_md5}) and put it in {tmp_path / 'data'}" in text
    assert "Name or service not known" in text
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and err == ""


def test_damaged_archive_is_named(small_cifar, no_network):
    folder, small, _ = small_cifar
    archive = folder / small.filename
    archive.write_bytes(archive.read_bytes()[:-100])
    text = message(load_cifar, "cifar10", str(folder), "cpu")
    assert f"{archive} is damaged" in text and small.tgz_md5 in text


def test_archive_that_does_not_unpack_is_named(small_cifar, no_network, monkeypatch):
    folder, small, _ = small_cifar
    (folder / small.filename).write_bytes(b"right sum, no archive")
    monkeypatch.setattr(small, "tgz_md5", md5(b"right sum, no archive").hexdigest())
    text = message(load_cifar, "cifar10", str(folder), "cpu")
    assert f"{folder / small.filename} cannot be unpacked" in text


def test_damaged_batch_is_unpacked_again(small_cifar, no_network):
    folder, small, arrays = small_cifar
    load_cifar("cifar10", str(folder), "cpu")
    (folder / small.base_folder / "batch_2").write_bytes(b"damaged")
    train, _ = load_cifar("cifar10", str(folder), "cpu")
    assert torch.equal(train.images[10:].flatten(1), torch.from_numpy(arrays["batch_2"]))

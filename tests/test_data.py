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
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from models.cifar import vgg11_bn
from tests.image_files import message
from utils import batches, data

# torchvision's CIFAR, made small.


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

    monkeypatch.setitem(data.TORCHVISION, "cifar10", Small)
    return folder, Small, arrays


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*args, **options):
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_cifar_is_unpacked_and_loaded_quietly(small_cifar, no_network, capfd):
    folder, small, arrays = small_cifar
    train, test = data.load_cifar("cifar10", str(folder), "cpu")
    assert capfd.readouterr() == (f"Fetching {small.filename} into {folder}\n", "")
    images = np.concatenate([arrays["batch_1"], arrays["batch_2"]]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.from_numpy(images))
    assert torch.equal(test.images.flatten(1), torch.from_numpy(arrays["test_batch"]))
    assert test.labels.tolist() == list(range(9, -1, -1)) and test.labels.dtype == torch.int64
    assert train.classes == tuple(f"class{i}" for i in range(10))
    data.load_cifar("cifar10", str(folder), "cpu")
    assert capfd.readouterr() == ("", "")


def test_a_download_draws_no_bar(small_cifar, monkeypatch, capfd):
    folder, small, _ = small_cifar
    content = (folder / small.filename).read_bytes()
    (folder / small.filename).unlink()

    class Response(io.BytesIO):
        url, length = None, len(content)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: Response(content))
    train, _ = data.load_cifar("cifar10", str(folder), "cpu")
    assert len(train) == 20
    assert capfd.readouterr() == (f"Fetching {small.filename} into {folder}\n", "")


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_no_network_says_what_to_fetch_and_where_to_put_it(tmp_path, no_network, name, kind, capfd):
    text = message(data.load_cifar, name, str(tmp_path / "data"), "cpu")
    assert f"{tmp_path / 'data' / kind.filename} is not there" in text
    assert f"fetch {kind.url} (md5 {kind.tgz_md5}) and put it in {tmp_path / 'data'}" in text
    assert "Name or service not known" in text
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and err == ""


def test_damaged_archive_is_named(small_cifar, no_network):
    folder, small, _ = small_cifar
    archive = folder / small.filename
    archive.write_bytes(archive.read_bytes()[:-100])
    text = message(data.load_cifar, "cifar10", str(folder), "cpu")
    assert f"{archive} is damaged" in text and small.tgz_md5 in text


def test_archive_that_does_not_unpack_is_named(small_cifar, no_network, monkeypatch):
    folder, small, _ = small_cifar
    (folder / small.filename).write_bytes(b"right sum, no archive")
    monkeypatch.setattr(small, "tgz_md5", md5(b"right sum, no archive").hexdigest())
    text = message(data.load_cifar, "cifar10", str(folder), "cpu")
    assert f"{folder / small.filename} cannot be unpacked" in text


def test_damaged_batch_is_unpacked_again(small_cifar, no_network):
    folder, small, arrays = small_cifar
    data.load_cifar("cifar10", str(folder), "cpu")
    (folder / small.base_folder / "batch_2").write_bytes(b"damaged")
    train, _ = data.load_cifar("cifar10", str(folder), "cpu")
    assert torch.equal(train.images[10:].flatten(1), torch.from_numpy(arrays["batch_2"]))


# Subsets.


def test_balanced_order_takes_each_class_in_turn_and_shuffles_inside():
    labels = torch.arange(10).repeat_interleave(5000)
    order = data.balanced_order(labels)
    assert torch.equal(order.sort().values, torch.arange(50000))
    assert torch.equal(labels[order], torch.arange(10).repeat(5000))
    inside = order[labels[order] == 3] - 15000
    assert not torch.equal(inside, torch.arange(5000))
    assert torch.equal(order, data.balanced_order(labels))


def test_balanced_order_with_classes_of_different_sizes():
    labels = torch.tensor([2, 0, 0, 2, 0, 1, 0])
    assert labels[data.balanced_order(labels)].tolist() == [0, 1, 2, 0, 2, 0, 0]


def test_subset_is_contained_in_a_larger_one_and_balanced():
    whole = data.load_cifar("synthetic", "", "cpu")
    small = data.load_cifar("synthetic", "", "cpu", subset=100)
    large = data.load_cifar("synthetic", "", "cpu", subset=1000)
    for part, a, b, count in zip(whole, small, large, (100, 20), strict=True):
        assert len(a) == count and len(b) == 10 * count
        assert torch.equal(a.images, b.images[:count]) and torch.equal(a.labels, b.labels[:count])
        assert a.labels.bincount().tolist() == [count // 10] * 10
        assert not torch.equal(a.images, part.images[:count])
        assert a.classes == part.classes


@pytest.mark.parametrize("subset", [50, 57, 5000])
def test_subset_at_its_limits(subset):
    train, test = data.load_cifar("synthetic", "", "cpu", subset=subset)
    assert (len(train), len(test)) == (subset, subset // 5)
    assert len(test.labels.unique()) == 10


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        (49, ["--subset 49: must be at least 50", "10 classes"]),
        (5001, ["--subset 5001", "there are 5000 and 1000"]),
    ],
)
def test_subset_that_cannot_be_had(subset, words):
    text = message(data.load_cifar, "synthetic", "", "cpu", subset=subset)
    assert all(word in text for word in words), text


def test_subset_with_too_few_test_images():
    train, test = (
        data.ImageSet(torch.empty(count, 0), torch.arange(count) % 3, ("bird", "cat", "dog"))
        for count in (36, 6)
    )
    assert len(data.take_subset(train, test, 34)[1]) == 6
    text = message(data.take_subset, train, test, 35)
    assert "--subset 35: asks for 35 training and 7 test images, there are 36 and 6" in text


# The made set.


def test_synthetic_is_the_same_every_time_and_leaves_the_generators_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = data.load_cifar("synthetic", "", "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = data.load_cifar("synthetic", "", "cpu")
    for a, b, count in zip(first, second, (5000, 1000), strict=True):
        assert a.images.shape == (count, 3, 32, 32) and a.images.dtype == torch.uint8
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert a.labels.bincount().tolist() == [count // 10] * 10
        assert len(a.classes) == len(set(a.classes)) == 10
    assert not torch.equal(first[0].images[:1000], first[1].images)


def stripes_seen(images: Tensor) -> Tensor:
    """The class whose stripes have the most energy in each image, by its Fourier sums."""
    centred = images.float() - images.float().mean((2, 3), keepdim=True)
    angles = 2 * torch.pi * torch.arange(32) / torch.tensor(data.WAVELENGTHS)[:, None]
    waves = torch.polar(torch.hann_window(32), angles)  # [5, 32]
    profiles = torch.stack([centred.mean(3), centred.mean(2)], 1)  # [N, 2, 3, 32]: rows, columns
    energy = (profiles.to(waves.dtype) @ waves.T).abs().square().sum(2)  # [N, 2, 5]
    return energy.flatten(1).argmax(1)


def test_flips_and_crops_keep_the_synthetic_class():
    _, test = data.load_cifar("synthetic", "", "cpu")
    shifted = F.pad(test.images, (0, 4, 4, 0))[:, :, :32, 4:]
    for images in (test.images, test.images.flip(-1), shifted):
        assert (stripes_seen(images) == test.labels).float().mean() > 0.8


def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = [model(part).flatten(1).argmax(1) for part in images.split(500)]
    return (torch.cat(found) == labels).float().mean().item()


def linear_accuracy(train: data.ImageSet, test: data.ImageSet, decay: float) -> float:
    """Test accuracy of logistic regression on the pixels, ``decay`` times the squared weights."""
    images, unseen = ((part.images.flatten(1).float() - 128) / 64 for part in (train, test))
    model = torch.nn.Linear(3072, 10)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), train.labels) + decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return accuracy(model, unseen, test.labels)


def test_a_linear_model_does_not_solve_synthetic():
    train, test = data.load_cifar("synthetic", "", "cpu")
    assert linear_accuracy(train, test, decay=0.1) < 0.25  # less decay overfits and tests worse


def test_a_linear_model_solves_stripes_of_fixed_phase_and_colour(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 0.5))
    monkeypatch.setattr(F, "normalize", torch.ones_like)
    train, test = data.make_synthetic(1000, 1), data.make_synthetic(500, 2)
    assert linear_accuracy(train, test, decay=0.1) > 0.9


@pytest.mark.slow
def test_a_small_vgg_solves_synthetic():
    train, test = data.load_cifar("synthetic", "", "cpu")
    torch.manual_seed(0)
    model = vgg11_bn(width_mult=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    order = batches.TrainBatches(train, 64, seed=0)
    unseen = torch.cat([images for images, _ in batches.TestBatches(test, 500)])
    reached = 0.0
    for epoch in range(6):
        model.train()
        for images, labels in order.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images)[:, 0], labels).backward()
            optimizer.step()
        reached = accuracy(model, unseen, test.labels)
        print(f"epoch {epoch + 1}: {reached:.3f}")
        if reached > 0.9:
            return
    pytest.fail(f"{reached:.3f} after six epochs")

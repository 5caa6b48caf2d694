"""data.identity: what a data set is known by, and that nothing else changes it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.image_files import pixels_of, write
from utils.data import sets
from utils.data.class_folders import listed
from utils.data.identity import digest, folder_name, known_by
from utils.data.images import ImageSet
from utils.data.photographs import load_imagenet, make_synthetic
from utils.errors import InputError
from utils.machine import distributed

COUNTS = {"cat": 2, "dog": 1}


@pytest.fixture(params=["test", "val"])
def root(request, tmp_path) -> Path:
    """A folder of two classes, as cifar.py (train, test) or imagenet.py (train, val) has it."""
    for split in ("train", request.param):
        for label, (name, count) in enumerate(COUNTS.items()):
            for index in range(count):
                write(
                    tmp_path / "set" / split / name / f"{index}.png", pixels_of(10 * label + index)
                )
    return tmp_path / "set"


def of(root: Path, **options) -> str:
    """The digest of the set in ``root``."""
    if (root / "val").exists():
        return digest(*load_imagenet(str(root), 32, **options))
    return digest(*sets.load_cifar("folder", str(root), "cpu", **options))


def added(root: Path) -> None:
    write(root / "train/cat/9.png", pixels_of(9))


def removed(root: Path) -> None:
    (root / "train/cat/1.png").unlink()


def renamed(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/cat/3.png")


def moved(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/dog/1.png")


def resized(root: Path) -> None:
    with open(root / "train/cat/1.png", "ab") as file:
        file.write(b"more")


def class_renamed(root: Path) -> None:
    for split in root.iterdir():
        if split.is_dir():
            (split / "cat").rename(split / "bat")


@pytest.mark.parametrize("change", [added, removed, renamed, moved, resized, class_renamed])
def test_what_changes_the_listing_changes_the_digest(change, root):
    before = of(root)
    change(root)
    assert of(root) != before


def test_the_test_images_count(root):
    before = of(root)
    (split,) = {path.name for path in root.iterdir() if path.is_dir()} - {"train"}
    (root / split / "cat/1.png").unlink()
    assert of(root) != before


def test_place_and_times_of_the_files_do_not_count(root, tmp_path):
    before = of(root)
    os.utime(root / "train/cat/0.png", (1, 1))
    root.rename(tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == before


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match=r"/cat/1\.png: No such file"):
        list(listed(str(tmp_path), [f"{tmp_path}/cat/1.png"]))


def images(count: int = 4) -> ImageSet:
    pixels = torch.arange(count * 3 * 32 * 32).reshape(count, 3, 32, 32).to(torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("cat", "dog"))


def test_arrays_are_known_by_pixels_labels_and_class_names():
    one = images()
    before = digest(one, one)
    pixel, label = one.images.clone(), one.labels.clone()
    pixel[3, 2, 31, 31] += 1
    label[0] = 1
    others = [
        replace(one, images=pixel),
        replace(one, labels=label),
        one.take(torch.tensor([1, 0, 2, 3])),
    ]
    digests = [digest(one, other) for other in others]
    digests.append(digest(replace(one, classes=("cat", "cow")), one))
    assert len({before, *digests}) == 5
    assert digest(replace(one), one) == before


def test_made_sets_are_known_by_how_they_are_made():
    """Their pixels may differ by one where another machine rounds otherwise."""
    train, test = sets.load_cifar("synthetic", "", "cpu", subset=50)
    assert digest(replace(train, images=train.images + 1), test) == digest(train, test)
    assert digest(test, train) != digest(train, test)
    assert digest(*sets.load_cifar("synthetic", "", "cpu", subset=60)) != digest(train, test)
    assert digest(*make_synthetic(32, 10)) == digest(*make_synthetic(32, 10))
    assert digest(*make_synthetic(32, 10)) != digest(*make_synthetic(32, 15))


def test_a_run_says_its_images_and_classes(capsys):
    known = known_by("pets", images(), images(2))
    assert capsys.readouterr().out == ("==> Data: pets, 2 classes, 4 training and 2 test images\n")
    assert known == {
        "name": "pets",
        "classes": 2,
        "images": [4, 2],
        "digest": digest(images(), images(2)),
    }


def test_every_process_has_the_digest_of_the_main_one(monkeypatch):
    """Which alone asks for the files."""
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "gathered", lambda value: ["of the main one", value])
    monkeypatch.setattr(ImageSet, "listing", None)
    assert known_by("pets", images(), images(2))["digest"] == "of the main one"


@pytest.mark.parametrize("folder", ["/a/pets", "/a/pets/", "/a/b/../pets/."])
def test_a_set_is_called_as_its_folder(folder):
    assert folder_name(folder) == "pets"


def test_the_name_of_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_name(".") == tmp_path.name

"""data.photographs: files, labels, classes and subsets."""

import os

import pytest

from tests.data.photographs.sets import (
    CLASSES,
    SIZE,
    test_batches,
    train_batches,
)
from tests.image_files import message, pixels_of, write
from utils.data import photographs


def test_files_labels_and_classes(root):
    train, test = photographs.load_imagenet(str(root), SIZE)
    assert train.classes == test.classes == CLASSES
    assert (len(train), len(test)) == (12, 5)
    assert train.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert test.labels.tolist() == [0, 0, 1, 1, 2]
    assert os.fsdecode(train.files[6]) == str(root / "train/n02/1.png")
    assert os.fsdecode(test.files[4]) == str(root / "val/n03/0.png")
    assert train.image_size == test.image_size == SIZE


def test_nothing_is_read_before_it_is_needed(root):
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    train, test = photographs.load_imagenet(str(root), SIZE)
    assert (len(train_batches(train)), len(test_batches(test))) == (3, 3)


def test_home_folder_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(photographs.load_imagenet(f"~/{root.name}", SIZE)[0]) == 12


def test_file_names_in_other_letters(root):
    name = root / "train/n03/Grüße 日本.JPEG"
    write(root / "train/n03/x.png", pixels_of(0)).rename(name)
    train, _ = photographs.load_imagenet(str(root), SIZE)
    index = [os.fsdecode(file) for file in train.files].index(str(name))
    assert train.image(index).size == (32, 32)


def test_labels_of_val_are_those_of_train(root, capsys):
    (root / "val/n01").rename(root / "elsewhere")
    _, test = photographs.load_imagenet(str(root), SIZE)
    assert test.labels.tolist() == [1, 1, 2] and test.classes == CLASSES
    assert f"{root}/val lacks 1 of the 3 classes" in capsys.readouterr().err


def no_train(root):
    (root / "train").rename(root / "training")


def no_val(root):
    (root / "val").rename(root / "test")


def flat_val(root):
    (root / "val").rename(root / "sorted")
    (root / "val").mkdir()
    (root / "val/0.png").touch()


def empty_class(root):
    (root / "train/n07").mkdir()


def one_class(root):
    for name in ("n02", "n03"):
        (root / "train" / name).rename(root / name)


def unknown_class(root):
    write(root / "val/n09/0.png", pixels_of(0))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_train, ["{root}/train: no such folder; --data {root}", "val/<class>/*"]),
        (no_val, ["{root}/val: no such folder; --data {root}", "train/<class>/*"]),
        (flat_val, ["{root}/val: no class folders in it", "val/<class>/*"]),
        (empty_class, ["{root}/train/n07: no images"]),
        (one_class, ["{root}/train: only one class folder (n01)", "at least 2 are needed"]),
        (unknown_class, ["{root}/val/n09: a class that {root}/train does not have"]),
    ],
)
def test_errors_name_the_folder(root, damage, words):
    damage(root)
    text = message(photographs.load_imagenet, str(root), SIZE)
    assert all(word.format(root=root) in text for word in words), text


def test_a_subset_takes_each_class_in_turn(root):
    whole, _ = photographs.load_imagenet(str(root), SIZE)
    train, test = photographs.load_imagenet(str(root), SIZE, subset=10)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert test.labels.tolist() == [0, 1]
    assert train.classes == test.classes == CLASSES
    label_of = dict(zip(whole.files.tolist(), whole.labels.tolist(), strict=True))
    assert [label_of[file] for file in train.files.tolist()] == train.labels.tolist()
    assert len(set(train.files.tolist())) == 10
    smaller, _ = photographs.load_imagenet(str(root), SIZE, subset=6)
    assert smaller.files.tolist() == train.files[:6].tolist()


def test_a_subset_larger_than_the_folder_is_all_of_it(root):
    train, test = photographs.load_imagenet(str(root), SIZE, subset=1000)
    assert (len(set(train.files.tolist())), len(set(test.files.tolist()))) == (12, 5)


def test_a_subset_tests_at_least_one_image(root):
    assert len(photographs.load_imagenet(str(root), SIZE, subset=5)[1]) == 1
    text = message(photographs.load_imagenet, str(root), SIZE, subset=4)
    assert text.startswith("--subset 4: must be at least 5")

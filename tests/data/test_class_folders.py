import builtins
import errno
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from tests import real
from tests.image_files import message, pixels_of, write
from utils.data import class_folders
from utils.data.identity import digest
from utils.data.images import ImageSet
from utils.data.photographs import load_imagenet
from utils.data.pillow import image_kinds
from utils.data.sets import load_cifar

CLASSES = ("bird", "cat", "dog")
TRAIN, TEST = 4, 2  # images of a class in the folders that the tests make


def seed_of(split: str, label: int, index: int) -> int:
    return 100 * (split == "test") + 10 * label + index


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of three classes, lossless."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                pixels = pixels_of(seed_of(split, label, index))
                write(tmp_path / split / name / f"{index}.png", pixels)
    return tmp_path


def expected(split: str, count: int) -> Tensor:
    stack = [pixels_of(seed_of(split, label, i)) for label in range(3) for i in range(count)]
    return torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)


def load(root: Path, **options) -> tuple[ImageSet, ImageSet]:
    return load_cifar("folder", str(root), "cpu", **options)


# Folders of images.


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_folder_pixels_labels_and_classes(root, workers, monkeypatch):
    monkeypatch.setattr(class_folders, "DECODE_CHUNK", 5)
    train, test = load(root, workers=workers)
    assert (len(train), len(test)) == (3 * TRAIN, 3 * TEST)
    assert train.classes == test.classes == CLASSES
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert torch.equal(train.images, expected("train", TRAIN))
    assert torch.equal(test.images, expected("test", TEST))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_home_folder_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(load(Path("~") / root.name)[0]) == 3 * TRAIN


def test_labels_of_the_test_set_are_those_of_train(root, capsys):
    for file in (root / "test/bird").iterdir():
        file.unlink()
    (root / "test/bird").rmdir()
    _, test = load(root)
    assert test.labels.tolist() == [1, 1, 2, 2]
    assert test.classes == CLASSES
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Warning: {root}/test lacks 1 of the 3 classes of {root}/train: bird"]


def test_many_classes_that_the_test_split_lacks_are_counted(root, capsys):
    for number in range(5):
        write(root / f"train/extra{number}/0.png", pixels_of(number))
    load(root)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"/test lacks 5 of the 8 classes of {root}/train: extra0, extra1, extra2 and 2 more"
    )


def test_hidden_things_and_those_of_systems_are_no_images_and_no_classes(root):
    (root / "train/cat/notes.txt").write_text("no image")
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails"):
        for place in ("train", "test", "train/cat", "test/dog"):
            write(root / place / folder / "0.png", pixels_of(0))
    for name in (".DS_Store", "._0.png", ".0.png", "Thumbs.db"):
        for place in ("train", "test", "train/cat", "test/dog"):
            (root / place / name).write_bytes(b"no image")
    train, test = load(root)
    assert train.classes == CLASSES and (len(train), len(test)) == (3 * TRAIN, 3 * TEST)


def test_images_may_lie_deeper_and_behind_links(root, tmp_path_factory):
    """In the order of torchvision's ImageFolder, which decides the order of training."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("b/1.png", "b/c/0.PNG", "a.png", "d-/2.jpg"):
        write(root / "train/cat/deep" / name, pixels_of(1))
        write(elsewhere / "more" / name, pixels_of(1))
    (root / "train/cat/linked").symlink_to(elsewhere / "more")
    (root / "train/zebra").symlink_to(elsewhere)
    classes, (train, _) = class_folders.list_splits(root, class_folders.SPLITS)
    wanted = ImageFolder(root / "train")
    assert list(classes) == wanted.classes == [*CLASSES, "zebra"]
    assert list(zip(train.files, train.labels, strict=True)) == wanted.samples


def test_what_pillow_reads_is_read_and_the_rest_is_named(root, capsys):
    """In small and in large letters."""
    pixels = np.full((32, 32, 3), (255, 0, 0), np.uint8)
    kinds = ["gif", "GIF", "jfif", "jpe", "jp2", "pcx", "tga", "webp"]
    if ".avif" in Image.registered_extensions():  # from Pillow 11.3 on
        kinds.insert(0, "avif")
    for kind in kinds:
        write(root / f"train/dog/a.{kind}", pixels)
    for name in ("train/dog/a.heic", "train/cat/b.HEIC", "test/list.csv", "test/dog/deep/README"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    train, _ = load(root)
    assert len(train) == 3 * TRAIN + len(kinds)
    difference = train.images[-len(kinds) :].float() - torch.tensor([255.0, 0, 0])[:, None, None]
    assert difference.abs().max() < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"Passed over in {root}: 2 .heic, 1 .csv, 1 without an ending"
    load_imagenet(str(with_val(root)), 32)
    assert "2 .heic" in capsys.readouterr().err


def with_val(root: Path) -> Path:
    """As imagenet.py wants it."""
    (root / "test").rename(root / "val")
    return root


@pytest.mark.parametrize("kind", [".mp4", ".mpg", ".eps", ".wmf", ".h5", ".pdf", ".txt", ".py"])
def test_what_pillow_cannot_read_by_itself_is_no_image(kind):
    assert kind not in image_kinds()


def test_a_class_folder_of_other_files_says_which(root):
    remove(root / "train/cat")
    for name in ("1.heic", "2.heic", "3.txt"):
        (root / "train/cat" / name).touch()
    assert message(load, root).endswith("in this class folder, but 2 .heic, 1 .txt")


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def no_train(root):
    remove(root / "train")
    (root / "train").rmdir()


def no_test(root):
    remove(root / "test")
    (root / "test").rmdir()


def no_classes(root):
    remove(root / "train")
    (root / "train/0.png").touch()


def empty_class(root):
    remove(root / "train/cat")


def empty_test_class(root):
    remove(root / "test/dog")
    (root / "test/dog/readme.md").touch()


def unknown_class(root):
    write(root / "test/fox/0.png", pixels_of(0))


def one_class(root):
    for name in ("cat", "dog"):
        remove(root / "train" / name)
        (root / "train" / name).rmdir()


def class_that_is_its_split(root):
    (root / "train/train").symlink_to("../train")


def loop_in_a_class(root):
    (root / "train/cat/deep").mkdir()
    (root / "train/cat/deep/again").symlink_to("..")


def loop_of_two(root):
    for name, other in (("one", "two"), ("two", "one")):
        (root / name).mkdir()
        (root / name / other).symlink_to(root / other)
    (root / "test/cat/more").symlink_to(root / "one")


def link_to_itself(root):
    (root / "train/cat/a").symlink_to("a")


def not_an_image(root):
    (root / "train/dog/2.png").write_bytes(b"nothing\nlike an image")


def truncated_image(root):
    file = root / "test/cat/1.png"
    file.write_bytes(file.read_bytes()[:1500])


def dangling_link(root):
    (root / "train/cat/9.png").symlink_to(root / "nowhere")


def other_size(root):
    write(root / "train/bird/9.png", pixels_of(0, height=32, width=40))


def other_mode(root):
    write(root / "test/bird/0.png", pixels_of(0), mode="L")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_train, ["{root}/train: no such folder", "train/<class>/*"]),
        (no_test, ["{root}/test: no such folder", "test/<class>/*"]),
        (no_classes, ["{root}/train: no class folders"]),
        (empty_class, ["{root}/train/cat: no images", ".png"]),
        (empty_test_class, ["{root}/test/dog: no images"]),
        (unknown_class, ["{root}/test/fox: a class that {root}/train does not have"]),
        (one_class, ["{root}/train: only one class folder (bird)", "at least 2 are needed"]),
        (class_that_is_its_split, ["{root}/train/train: a link to a folder that it lies in"]),
        (loop_in_a_class, ["{root}/train/cat/deep/again: a link to a folder that it lies in"]),
        (loop_of_two, ["{root}/test/cat/more/two/one: a link to a folder that it lies in"]),
        (link_to_itself, ["{root}/train/cat/a: Too many levels of symbolic links"]),
        (not_an_image, ["{root}/train/dog/2.png: a broken image"]),
        (truncated_image, ["{root}/test/cat/1.png: a broken image"]),
        (dangling_link, ["{root}/train/cat/9.png: No such file"]),
        (other_size, ["{root}/train/bird/9.png: the image is RGB 40x32, must be RGB 32x32"]),
        (other_mode, ["{root}/test/bird/0.png: the image is L 32x32, must be RGB 32x32"]),
    ],
)
def test_folder_errors_name_what_is_wrong(root, damage, words):
    damage(root)
    text = message(load, root)
    assert all(word.format(root=root) in text for word in words), text


@pytest.mark.parametrize("place", ["train", "train/cat", "test/dog/deep", "train/cat/0.png"])
def test_what_cannot_be_read_is_named(root, monkeypatch, place):
    """Refused by a stand-in for the system: root, who runs the tests elsewhere, may read all."""
    (root / "test/dog/deep").mkdir()
    refused, scan, opened = str(root / place), os.scandir, builtins.open

    def refusing(call):
        def instead(path, *rest, **options):
            if str(path) == refused:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *rest, **options)

        return instead

    monkeypatch.setattr(os, "scandir", refusing(scan))
    monkeypatch.setattr(builtins, "open", refusing(opened))
    assert message(load, root) == f"{refused}: Permission denied"


def test_missing_root_is_named(tmp_path):
    assert str(tmp_path / "absent/train") in message(load, tmp_path / "absent")


def test_first_broken_image_is_named_whatever_the_threads(root, monkeypatch):
    monkeypatch.setattr(class_folders, "DECODE_CHUNK", 1)
    for name in ("dog/3", "cat/1", "dog/0"):
        (root / f"train/{name}.png").write_bytes(b"broken")
    assert "train/cat/1.png" in message(load, root, workers=4)


# The cache of decoded images.


def caches(root: Path, split: str) -> list[Path]:
    return sorted(root.glob(f".nr-cache-{split}-*"))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by the number of files of each call that really decodes."""
    counts = []
    decode_all = class_folders.decode_all

    def counting(files, workers):
        counts.append(len(files))
        return decode_all(files, workers)

    monkeypatch.setattr(class_folders, "decode_all", counting)
    return counts


def test_second_load_comes_from_the_cache(root, decoded):
    first = load(root)
    assert decoded == [12, 6]
    second = load(root)
    assert decoded == [12, 6]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True))


def test_cache_moves_with_its_folder(root, decoded):
    load(root)
    load(root.rename(root.with_name("moved")))
    assert decoded == [12, 6]


def change_pixels(root):
    write(root / "train/dog/0.png", pixels_of(999))


def change_time(root):
    file = root / "train/dog/0.png"
    file.write_bytes(file.read_bytes())


def add_file(root):
    write(root / "train/dog/7.png", pixels_of(999))


def rename_file(root):
    (root / "train/dog/0.png").rename(root / "train/cat/7.png")


@pytest.mark.parametrize("change", [change_pixels, change_time, add_file, rename_file])
def test_changed_folder_is_decoded_again_and_the_old_cache_goes(root, decoded, change):
    load(root)
    (old,), (other,) = caches(root, "train"), caches(root, "test")
    change(root)
    train, _ = load(root)
    assert len(decoded) == 3 and decoded[2] == len(train)
    assert caches(root, "train") != [old] and len(caches(root, "train")) == 1
    assert caches(root, "test") == [other]
    fresh, _ = class_folders.load_folder(root, 1)
    assert torch.equal(fresh.images, train.images)


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_other_pictures_of_equal_names_sizes_and_times_are_decoded(root, how):
    """As archives with fixed times unpack; files of type BMP and equal shape are equally large."""
    for split in ("train", "test"):
        for name in CLASSES:
            write(root / split / name / "9.bmp", pixels_of(1))
    file = root / "train/dog/9.bmp"
    status, (train, test) = file.stat(), load(root)
    old, known = train.images[-1], digest(train, test)
    if how == "another file":
        file.unlink()
    write(file, pixels_of(2))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    train, test = load(root)
    new = train.images[-1]
    assert not torch.equal(old, new) and known != digest(train, test)
    assert torch.equal(new, torch.from_numpy(pixels_of(2)).permute(2, 0, 1))


def test_what_a_killed_write_has_left_is_removed(root):
    left = root / ".nr-cache-train-0123456789abcdef.npz.89ab"
    left.write_bytes(b"half")
    other = root / "photo.npz.89ab"
    other.touch()
    load(root)
    assert not left.exists() and other.exists()


def test_what_a_living_process_writes_stays(root):
    left = root / ".nr-cache-train-0123456789abcdef.npz.89ab"
    with open(left, "xb") as file:
        class_folders.hold(file)
        load(root)
        assert left.exists()
    load(root)
    assert not left.exists()


@pytest.mark.parametrize("days", [0, 2])
def test_without_locks_what_is_left_goes_after_a_day(root, monkeypatch, days):
    monkeypatch.setattr(class_folders, "fcntl", None)
    left = root / ".nr-cache-train-0123456789abcdef.npz.89ab"
    left.touch()
    os.utime(left, (time.time() - days * 86400,) * 2)
    load(root)
    assert left.exists() == (days == 0)


def flip_byte(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)


def truncate(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:1000])


def empty(cache: Path) -> None:
    cache.write_bytes(b"")


def other_count(cache: Path) -> None:
    np.savez(cache, images=np.zeros((2, 3, 32, 32), np.uint8))


def other_type(cache: Path) -> None:
    np.savez(cache, images=np.zeros((12, 3, 32, 32), np.float32))


def no_images(cache: Path) -> None:
    np.savez(cache, other=np.zeros(2))


@pytest.mark.parametrize("damage", [flip_byte, truncate, empty, other_count, other_type, no_images])
def test_damaged_cache_is_ignored_and_rewritten(root, decoded, damage):
    load(root)
    (cache,) = caches(root, "train")
    damage(cache)
    train, _ = load(root)
    assert decoded == [12, 6, 12]
    assert torch.equal(train.images, expected("train", TRAIN))
    load(root)
    assert decoded == [12, 6, 12]


def test_without_a_place_for_the_cache_the_images_load_all_the_same(root, decoded):
    load(root)
    (cache,) = caches(root, "train")
    cache.unlink()
    cache.mkdir()  # cannot be replaced by a file
    for _ in range(2):
        assert torch.equal(load(root)[0].images, expected("train", TRAIN))
    assert decoded == [12, 6, 12, 12]
    assert caches(root, "train") == [cache]


def test_failed_write_leaves_nothing_behind(root, monkeypatch):
    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(class_folders.np, "savez", disk_full)
    assert torch.equal(load(root)[0].images, expected("train", TRAIN))
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]


# Real images.


@real.needs(real.CIFAR)
def test_real_images(tmp_path):
    wanted = {
        f"{split}/{name}/{index:04}.jpg"
        for split in ("train", "test")
        for name in ("airplane", "truck")
        for index in range(5)
    }
    with tarfile.open(real.archive(real.CIFAR)) as archive:
        for member in archive:
            if member.name in wanted:
                archive.extract(member, tmp_path, filter="data")
    for train, test in (load(tmp_path), load(tmp_path)):  # decoded, then cached
        assert train.classes == ("airplane", "truck")
        assert train.labels.tolist() == test.labels.tolist() == [0] * 5 + [1] * 5
        with Image.open(tmp_path / "test/truck/0002.jpg") as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(test.images[7], pixels)
        assert not torch.equal(train.images, test.images)

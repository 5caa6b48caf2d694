import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision import transforms

from nr import SGD
from tests import real
from tests.helpers import tiny, vary
from tests.image_files import message, pixels_of, write
from utils.data import photographs
from utils.errors import DataError
from utils.machine.seeding import ORDER, mixed_seed
from utils.training import engine

SIZE = 16  # pixels a side of a crop in these tests
LEVEL = 1 / 255 / min(photographs.STD)  # one pixel value, after normalisation
CLASSES = ("n01", "n02", "n03")
TRAIN, TEST = (5, 4, 3), (2, 2, 1)  # images of each class


def shape_of(seed: int) -> tuple[int, int]:
    """Height and width of an image: upright, wide, smaller than the crop."""
    return ((40, 30), (20, 45), (9, 12), (24, 24))[seed % 4]


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of three classes, lossless."""
    seed = 0
    for split, counts in (("train", TRAIN), ("val", TEST)):
        for name, count in zip(CLASSES, counts, strict=True):
            for index in range(count):
                write(tmp_path / split / name / f"{index}.png", pixels_of(seed, *shape_of(seed)))
                seed += 1
    return tmp_path


@pytest.fixture
def train(root) -> photographs.Photographs:
    return photographs.load_imagenet(str(root), SIZE)[0]


@pytest.fixture
def test(root) -> photographs.Photographs:
    return photographs.load_imagenet(str(root), SIZE)[1]


def train_batches(images, workers=0, batch_size=4, seed=3, **share) -> photographs.TrainBatches:
    return photographs.TrainBatches(images, batch_size, seed, workers, "cpu", **share)


def test_batches(images, workers=0, batch_size=2, **share) -> photographs.TestBatches:
    return photographs.TestBatches(images, batch_size, workers, "cpu", **share)


test_batches.__test__ = False  # a helper, whatever pytest makes of its name


def same(first, second) -> bool:
    """Whether two series of batches are bit-equal."""
    pairs = list(zip(list(first), list(second), strict=True))
    assert pairs
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def normalised(image: Image.Image) -> Tensor:
    """As torchvision does it: float32 [3, H, W]."""
    values = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return transforms.Normalize(*values)(transforms.ToTensor()(image))


def opened(images: photographs.Photographs, index: int) -> Image.Image:
    with Image.open(os.fsdecode(images.files[index])) as image:
        return image.convert("RGB")


class Never:
    """A stop request that never comes."""

    signum = 0

    def agreed(self) -> int:
        return 0

    agreed_now = agreed


def order_of(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator).tolist()


# Listing.


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


# Subsets.


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


# The pixels.


@pytest.mark.parametrize("size", [16, 21, 32])
def test_test_images_are_the_standard_pipelines(test, size):
    found = list(test_batches(replace(test, image_size=size)))
    assert [len(labels) for _, labels in found] == [2, 2, 1]
    assert torch.cat([labels for _, labels in found]).tolist() == test.labels.tolist()
    standard = transforms.Compose(
        [transforms.Resize(round(256 / 224 * size)), transforms.CenterCrop(size)]
    )
    pixels = torch.cat([pixels for pixels, _ in found])
    assert pixels.shape == (5, 3, size, size) and pixels.is_contiguous()
    wanted = torch.stack([normalised(standard(opened(test, index))) for index in range(5)])
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)


def test_the_usual_size_is_cropped_from_256():
    assert photographs.resized(224) == 256


def test_training_images_are_the_standard_pipelines(train):
    standard = transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    )
    for epoch in (0, 5):
        pixels, labels = map(torch.cat, zip(*train_batches(train).epoch(epoch), strict=True))
        order = order_of(12, 3, epoch)
        assert labels.tolist() == train.labels[order].tolist()
        for position, index in enumerate(order):
            torch.manual_seed(mixed_seed(3, ORDER, epoch, index + 1))
            wanted = normalised(standard(opened(train, index)))
            torch.testing.assert_close(pixels[position], wanted, rtol=0, atol=1.01 * LEVEL)


def test_crops_and_flips_vary(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))
    for index in range(200):
        write(tmp_path / f"train/a/{index:03}.png", ramp)
    for folder in ("train/b", "val/a"):
        write(tmp_path / folder / "0.png", ramp)
    train, _ = photographs.load_imagenet(str(tmp_path), SIZE)
    ((pixels, _),) = train_batches(train, batch_size=201).epoch(0)
    slope = (pixels[:, 0, :, -1] - pixels[:, 0, :, 0]).mean(1)  # [N], negative where flipped
    assert 70 < (slope < 0).sum() < 130
    assert slope.abs().max() > 2 * slope.abs().min()
    assert len(slope.abs().unique()) > 30


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_other_modes_become_rgb(root, mode):
    suffix = "jpg" if mode in ("L", "CMYK") else "png"
    file = root / f"train/n01/_.{suffix}"
    plain = np.full((30, 40, 3), 255, np.uint8)
    Image.fromarray(plain).convert(mode).save(file)
    train, _ = photographs.load_imagenet(str(root), SIZE)
    found = [os.fsdecode(name) for name in train.files].index(str(file))
    image = train.image(found)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert np.asarray(image).min() >= 254
    decoder = photographs.Decoder(train, photographs.train_transform(SIZE), 0)
    pixels = decoder[photographs.Request(0, np.array([found]))]
    assert pixels.shape == (1, 3, SIZE, SIZE) and pixels.dtype == torch.uint8


# Order and augmentation as functions of seed and epoch.


def test_epochs_repeat_and_differ(train):
    first = list(train_batches(train).epoch(0))
    again = train_batches(train)
    list(again.epoch(1))
    assert same(first, again.epoch(0))
    for other in (again.epoch(1), train_batches(train, seed=4).epoch(0)):
        (a, labels_a), (b, labels_b) = (
            map(torch.cat, zip(*s, strict=True)) for s in (first, other)
        )
        assert not torch.equal(labels_a, labels_b) and not torch.equal(a, b)
        assert labels_a.bincount().tolist() == labels_b.bincount().tolist() == list(TRAIN)


def test_an_image_is_cropped_anew_in_each_epoch(train):
    decoder = photographs.Decoder(train, photographs.train_transform(SIZE), seed=3)
    crops = [decoder.decode(epoch, 6) for epoch in range(4)]
    assert len({crop.numpy().tobytes() for crop in crops}) == 4
    assert torch.equal(decoder.decode(2, 6), crops[2])
    assert not torch.equal(replace_seed(decoder, 4).decode(2, 6), crops[2])


def replace_seed(decoder: photographs.Decoder, seed: int) -> photographs.Decoder:
    return photographs.Decoder(decoder.images, decoder.transform, seed)


def test_images_with_the_same_pixels_are_cropped_differently(tmp_path):
    for index in range(8):
        write(tmp_path / f"train/a/{index}.png", pixels_of(0))
    for folder in ("train/b", "val/a"):
        write(tmp_path / folder / "0.png", pixels_of(0))
    train, _ = photographs.load_imagenet(str(tmp_path), SIZE)
    ((pixels, _),) = train_batches(train, batch_size=9).epoch(0)
    assert len({image.numpy().tobytes() for image in pixels}) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_do_not_depend_on_the_workers(train, test, workers):
    alone, helped = train_batches(train), train_batches(train, workers)
    for epoch in (0, 3, 1):
        assert same(alone.epoch(epoch), helped.epoch(epoch))
    assert same(test_batches(test), test_batches(test, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_neither_read_nor_moved(train, test, workers):
    def states() -> list:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
        ]

    found = []
    for seed in (1, 2):
        for generator in (torch.manual_seed, np.random.seed, random.seed):
            generator(seed)
        before = states()
        parts = train_batches(train, workers), test_batches(test, workers)
        found.append([*parts[0].epoch(0), *parts[0].epoch(1), *parts[1]])
        assert states() == before
    assert same(*found)


def test_the_generator_is_put_back_after_a_broken_image(train, root):
    (root / "train/n01/0.png").write_bytes(b"broken")
    before = torch.get_rng_state()
    message(list, train_batches(train).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


# Going on inside an epoch.


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(train, workers):
    series = train_batches(train, workers, batch_size=3)
    whole = list(series.epoch(2))
    assert len(whole) == len(series) == 4
    for first in range(4):
        assert same(whole[first:], series.epoch(2, first_batch=first))
    assert list(series.epoch(2, first_batch=4)) == []


def test_earlier_batches_are_not_decoded(train, monkeypatch):
    seen = []
    image = photographs.Photographs.image
    monkeypatch.setattr(
        photographs.Photographs, "image", lambda self, i: seen.append(i) or image(self, i)
    )
    list(train_batches(train).epoch(1, first_batch=2))
    assert seen == order_of(12, 3, 1)[8:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_given_up_leaves_nothing_to_the_next(train, workers):
    series = train_batches(train, workers, batch_size=2)
    wanted = list(series.epoch(1))
    for taken in (1, 3):
        given_up = series.epoch(0)
        for _ in range(taken):
            next(given_up)
        assert same(wanted, series.epoch(1))


# Several processes.


def joined(parts: list) -> list:
    """The batches of several processes put together, batch by batch."""
    return [list(map(torch.cat, zip(*ranks, strict=True))) for ranks in zip(*parts, strict=True)]


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_share_the_batches_of_one(train, test, world):
    ranks = [{"rank": rank, "world": world} for rank in range(world)]
    parts = [train_batches(train, batch_size=6, **rank) for rank in ranks]
    assert same(train_batches(train, batch_size=6).epoch(1), joined([p.epoch(1) for p in parts]))
    assert same(
        train_batches(train, batch_size=6).epoch(1, first_batch=1),
        joined([part.epoch(1, first_batch=1) for part in parts]),
    )
    parts = [test_batches(test, batch_size=5, **rank) for rank in ranks]
    assert same(test_batches(test, batch_size=5), joined(parts))


def test_the_usual_test_batch_is_as_large_as_the_memory_is_known_to_allow():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    usual = photographs.usual_test_batch
    assert [usual(batch, cpu) for batch in (16, 256)] == [100, 100]
    assert [usual(batch, gpu) for batch in (16, 256)] == [100, 256]


def test_the_accuracy_does_not_depend_on_the_test_batch():
    _, test = photographs.make_synthetic(SIZE, 120)
    model = vary(tiny(classes=len(test.classes)))
    found = [
        engine.evaluate(model, test_batches(test, batch_size=size), False, Never())
        for size in (5, 7, 24)
    ]
    assert len({(figures.top1, figures.top5) for figures in found}) == 1
    assert all(f.loss == pytest.approx(found[0].loss, rel=1e-6) for f in found)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_test_image_goes_to_one_process(test, world):
    images = replace(test, labels=torch.arange(5))
    parts = [test_batches(images, batch_size=4, rank=rank, world=world) for rank in range(world)]
    found = [[labels.tolist() for _, labels in part] for part in parts]
    assert [len(part) for part in parts] == [len(part) for part in found]
    assert sorted(label for part in found for labels in part for label in labels) == list(range(5))


@pytest.mark.parametrize(("batch_size", "sizes"), [(12, [12]), (5, [5, 5, 2]), (11, [11])])
def test_a_last_batch_of_one_image_is_left_out(train, batch_size, sizes):
    series = train_batches(train, batch_size=batch_size)
    assert [len(labels) for _, labels in series.epoch(0)] == sizes
    assert len(series) == len(sizes)


def test_too_few_images_and_too_small_batches(train, test):
    one = photographs.first_balanced(train, 1)
    text = message(train_batches, one)
    assert text == "1 training images: a batch on 1 process(es) of 1 device(s) needs at least 2"
    share = {"batch_size": 2, "rank": 0, "world": 3}
    assert message(train_batches, train, **share).startswith("--train-batch 2: must be at least 3")
    assert message(test_batches, test, **share).startswith("--test-batch 2: must be at least 3")


# Broken images and lost workers.


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_may_have_no_image_of_a_batch(train, workers):
    """12 images in batches of 5: one process of three has none of the last two."""
    shares = [train_batches(train, workers, 5, rank=rank, world=3) for rank in range(3)]
    parts = [list(part.epoch(0)) for part in shares]
    sizes = [[len(labels) for _, labels in part] for part in parts]
    assert sizes == [[1, 1, 0], [2, 2, 1], [2, 2, 1]]
    assert parts[0][2][0].shape == (0, 3, SIZE, SIZE)


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


# Made images.


def test_synthetic_has_a_thousand_classes_where_it_can():
    for subset, count, classes in ((None, 5000, 1000), (10000, 10000, 1000), (64, 64, 12)):
        train, test = photographs.make_synthetic(SIZE, subset)
        assert (len(train), len(test)) == (count, count // 5)
        assert len(train.classes) == len(set(train.classes)) == classes
        assert train.classes == test.classes
        for part in (train, test):
            counts = part.labels.bincount()
            assert len(counts) == classes and counts.max() - counts.min() <= 1


def test_too_small_a_synthetic_set():
    assert photographs.make_synthetic(SIZE, 10)[0].classes == ("000", "001")
    text = message(photographs.make_synthetic, SIZE, 9)
    assert text.startswith("--subset 9: must be at least 10")


def test_synthetic_is_the_same_every_time():
    first, second = (photographs.make_synthetic(SIZE, 20) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert same(test_batches(a), test_batches(b))
    images = [part.image(index).tobytes() for part in first for index in range(len(part))]
    assert len(set(images)) == 24
    assert first[0].image(0).mode == "RGB" and first[0].image(0).size == (24, 18)


def test_synthetic_does_not_depend_on_the_workers():
    train, _ = photographs.make_synthetic(SIZE, 20)
    assert same(train_batches(train).epoch(0), train_batches(train, workers=2).epoch(0))


def features(series) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each colour of each image, [N, 6], and the labels."""
    pixels, labels = map(torch.cat, zip(*series, strict=True))
    return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1), labels


def test_synthetic_can_be_learned():
    train, test = photographs.make_synthetic(32, 400)
    classes = len(train.classes)
    assert classes == 80
    seen, labels = features(train_batches(train, batch_size=100).epoch(0))
    centres = torch.stack([seen[labels == label].mean(0) for label in range(classes)])
    unseen, wanted = features(test_batches(test, batch_size=80))
    found = torch.cdist(unseen, centres).argmin(1)
    assert (found == wanted).float().mean() > 0.3  # 0.0125 by chance


# As the scripts use them.


@pytest.mark.parametrize("workers", [0, 1])
def test_the_engine_trains_and_evaluates_on_them(workers):
    train, test = photographs.make_synthetic(SIZE, 20)
    model = tiny(classes=len(train.classes))
    optimizer = SGD(model, 0.1, momentum=0.9, weight_decay=0.0)
    series = train_batches(train, workers)
    sums = engine.train_epoch(model, series, 0, optimizer, False, Never())
    again = engine.train_epoch(model, series, 0, optimizer, False, Never(), sums[:3])
    assert sums[:, 0].tolist() == again[:, 0].tolist() == [4] * 5
    figures = engine.evaluate(model, test_batches(test, workers), False, Never())
    assert 0 < figures.loss < 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same_on_a_gpu(train, test, workers):
    pairs = [
        (
            train_batches(train).epoch(1),
            photographs.TrainBatches(train, 4, 3, workers, "cuda").epoch(1),
        ),
        (test_batches(test), photographs.TestBatches(test, 2, workers, "cuda")),
    ]
    for host, device in pairs:
        for (pixels, labels), (there, labels_there) in zip(host, device, strict=True):
            assert there.is_cuda and torch.equal(labels, labels_there.cpu())
            torch.testing.assert_close(there.cpu(), pixels, rtol=0, atol=1e-5)


# Real photographs.


@real.needs(real.PHOTOGRAPHS)
def test_real_photographs(tmp_path):
    with tarfile.open(real.archive(real.PHOTOGRAPHS)) as archive:
        files = [member for member in archive if member.isfile()][:12]
        archive.extractall(tmp_path, files, filter="data")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    train, test = photographs.load_imagenet(str(tmp_path), 224)
    assert len(train) == len(test) == len(train.classes) == 12
    assert same(train_batches(train).epoch(0), train_batches(train, workers=2).epoch(0))
    standard = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    pixels = torch.cat([pixels for pixels, _ in test_batches(test, workers=1)])
    wanted = torch.stack([normalised(standard(opened(test, index))) for index in range(12)])
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)
    assert 0.5 < pixels.std() < 2

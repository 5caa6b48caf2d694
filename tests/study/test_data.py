"""The study's data folders, evaluation file, and the copies that are committed."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from tests.study import data, evaluation, summary
from tests.study.__main__ import make_data
from tests.study.jobs import Places
from tests.study.settings import GROUPS
from utils.data import torchvision_cifar
from utils.data.class_folders import load_folder
from utils.data.images import ImageSet
from utils.errors import InputError
from utils.report.runs import DATA_NAMES


def archive(path, names: list[str]) -> None:
    with tarfile.open(path, "w:xz") as packed:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            packed.addfile(member, io.BytesIO(b"jpg"))


def test_the_archive_is_unpacked_whole_once(tmp_path):
    archive(tmp_path / "x.tar.xz", ["train/cat/0000.jpg", "test/cat/0000.jpg"])
    target = tmp_path / "nr-data" / "cifar10-jpeg"
    (tmp_path / "nr-data" / ".cifar10-jpeg.tmp" / "half").mkdir(parents=True)  # killed in here
    data.unpack(tmp_path / "x.tar.xz", target)
    assert sorted(path.name for path in target.iterdir()) == ["test", "train"]
    assert [path.name for path in target.parent.iterdir()] == ["cifar10-jpeg"]
    data.unpack(tmp_path / "gone", target)  # is there


@pytest.mark.parametrize("kind, words", [("none", "gone"), ("cut", "unpacked"), ("odd", "train/")])
def test_an_archive_that_cannot_be_used_leaves_no_folder(kind, words, tmp_path):
    path = tmp_path / "gone.tar.xz"
    if kind != "none":
        archive(path, ["other/cat/0000.jpg" if kind == "odd" else "train/cat/0000.jpg"])
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=words):
        data.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_is_taken_as_it_is(tmp_path):
    with pytest.raises(
        InputError, match=r"--data .*: no folder train/ in it: .*--archive.*cifar10"
    ):
        data.made_folder(tmp_path, None)
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    assert data.made_folder(tmp_path, None) == tmp_path


def test_held_out_images_of_torchvision_are_as_exact(tmp_path):
    pixels = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.tensor([0, 1] * 5), ("cat", "dog"))
    target = data.hold_out_of(images, tmp_path / "heldout", training=3)
    train, test = load_folder(target, 1)
    assert torch.equal(train.images, pixels[[0, 2, 4, 1, 3, 5]])
    assert torch.equal(test.images, pixels[[6, 8, 7, 9]])


@pytest.mark.parametrize(
    ("group", "folder", "names"),
    [
        ("setting a", None, ["cifar10"]),
        ("pilot a", None, ["cifar10"]),
        ("paper cifar", "images", ["cifar10", "cifar100"]),
        ("quick", None, []),
        ("paper imagenet", None, []),
    ],
)
def test_what_runs_share_is_fetched_before_them(group, folder, names, tmp_path, monkeypatch):
    images = ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1), ("cat",))
    fetched = []

    def load(kind: type, root: Path) -> tuple[ImageSet, ImageSet]:
        fetched.append((kind, root))
        return images, images

    monkeypatch.setattr(torchvision_cifar, "load", load)
    downloads = tmp_path / "data"
    places = Places(tmp_path, folder and tmp_path / folder, tmp_path, downloads=downloads)
    make_data(GROUPS[group], places, None)
    assert {*fetched} == {(torchvision_cifar.KINDS[name], downloads) for name in names}
    assert (downloads / "cifar10-heldout").is_dir() == (group == "pilot a")


def test_held_out_images_are_training_images(tmp_path):
    for name in ("cat", "dog"):
        for number in range(5):
            file = tmp_path / "train" / name / f"{number:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {number}")
    target = data.hold_out(tmp_path, tmp_path.parent / "heldout", training=3)
    for name in ("cat", "dog"):
        for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
            files = sorted((target / split / name).iterdir())
            assert [file.read_text() for file in files] == [f"{name} {n}" for n in numbers]
    assert DATA_NAMES["cifar10-jpeg-heldout"].endswith("held-out training images")


def test_what_an_evaluation_printed_is_kept():
    printed = (
        "Resuming\nValid Loss: 1.2346 | Valid Acc.: 61.30 | Valid 5 Acc.: 95.00 | Images: 10000\n"
    )
    assert evaluation.parsed(printed) == {"accuracy": 61.3, "loss": 1.2346, "images": 10000}
    with pytest.raises(InputError, match="no result"):
        evaluation.parsed("Valid Loss: nan")


def test_a_run_on_other_data_is_not_collected_over_one(tmp_path):
    for place, name in (("runs", "a"), ("runs", "b"), ("there", "b")):
        folder = tmp_path / place / f"{name}-plain-seed1"
        folder.mkdir(parents=True)
        (folder / "log.txt").touch()
        args = {"dataset": "cifar10" if place == "runs" else "cifar100", "subset": None}
        (folder / "run.json").write_text(json.dumps({"args": args}))
    with pytest.raises(InputError, match=r"b-plain-seed1: a run on CIFAR-100, and .* on CIFAR-10:"):
        summary.collect(tmp_path / "runs", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["b-plain-seed1"]


def test_logs_are_collected_without_weights_and_pictures(tmp_path):
    runs, target = tmp_path / "runs", tmp_path / "checkpoints" / "study"
    for name, files in (
        ("a-plain-seed1", ["log.txt", "run.json", "evaluation.json", "checkpoint.pth.tar"]),
        ("a-search-seed1", ["log.txt", "run.json", "curves.png", "screen.txt"]),
        ("a-nr-cr-seed1", ["screen.txt"]),  # has not trained an epoch
    ):
        (runs / name).mkdir(parents=True)
        for file in files:
            (runs / name / file).write_text(json.dumps(file))
    assert summary.collect(runs, target) == 2
    found = sorted(str(path.relative_to(target)) for path in target.glob("*/*"))
    assert found == [
        "a-plain-seed1/evaluation.json",
        "a-plain-seed1/log.txt",
        "a-plain-seed1/run.json",
        "a-search-seed1/log.txt",
        "a-search-seed1/run.json",
    ]

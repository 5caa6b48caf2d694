"""The study's data folders, evaluation file, and the copies that are committed."""

import io
import json
import tarfile

import pytest

from tests.study import data, evaluation, summary
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

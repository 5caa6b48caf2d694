"""What a run does not go on with."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import cifar
from tests.training.run.small_runs import (
    CLASSES,
    FLAGS,
    LAST,
    PLAIN,
    PREVIOUS,
    contents,
    go,
    interrupt,
    resume,
)
from utils.errors import InputError
from utils.report.runs import read_run
from utils.training import checkpoint
from utils.training.signals import Stopped


def other_classes(monkeypatch, data, classes: tuple[str, ...]) -> None:
    """The same images under other names."""
    sets = [dataclasses.replace(images, classes=classes) for images in data]
    monkeypatch.setattr(cifar, "load_cifar", lambda *_, **__: sets)


@pytest.mark.parametrize("flags", ["--resume auto", "-e --resume auto"])
@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("abxdefghyj", "class 3 is 'c', that of the data 'x'"),
        ("bacdefghij", "class 1 is 'a', that of the data 'b'"),
        ("abcdefghijk", "class 11 is none, that of the data 'k'"),
        ("abcdefghi", "class 10 is 'j', that of the data none"),
    ],
)
def test_other_class_names_are_refused_naming_the_first(
    tmp_path, data, monkeypatch, flags, classes, words
):
    go(tmp_path, f"{PLAIN} --epochs 1")
    assert checkpoint.read(tmp_path / LAST)["classes"] == list(CLASSES)
    before = contents(tmp_path)
    other_classes(monkeypatch, data, tuple(classes))
    with pytest.raises(InputError) as caught:
        go(tmp_path, f"{PLAIN} --epochs 2 {flags}")
    assert str(caught.value) == f"{tmp_path / LAST}: {words}"
    assert contents(tmp_path) == before


def test_other_data_are_refused_at_a_resume_and_not_in_an_evaluation(tmp_path, data, monkeypatch):
    go(tmp_path, f"{PLAIN} --epochs 1")
    known = checkpoint.read(tmp_path / LAST)["data"]
    assert (known["name"], known["classes"], known["images"]) == ("cifar10", 10, [24, 10])
    assert json.loads((tmp_path / "run.json").read_text())["data"] == known
    before = contents(tmp_path)
    for images in (data[0].take(torch.arange(23)), data[0].take(torch.arange(24).flip(0))):
        with monkeypatch.context() as patch:
            patch.setattr(cifar, "load_cifar", lambda *_, train=images, **__: (train, data[1]))
            with pytest.raises(InputError) as caught:
                resume(tmp_path, f"{PLAIN} --epochs 2")
            assert resume(tmp_path, f"{PLAIN} -e") == 0
        (line,) = str(caught.value).splitlines()
        was = f"{tmp_path / LAST}: was trained on cifar10 (24 training and 10 test images, digest "
        assert line.startswith(was) and f"the data are cifar10 ({len(images)} training" in line
    assert contents(tmp_path) == before
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0


def resume_untargeted(folder: Path, flags: str) -> int:
    """As ``resume``, without the --nr-target of FLAGS."""
    words = FLAGS.replace("--nr-target 0.6", "").split()
    return cifar.main([*words, "-c", str(folder), "--resume", "auto", *flags.split()])


def test_plain_training_stays_plain(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    assert resume_untargeted(tmp_path, "--epochs 2") == 0
    assert read_run(tmp_path).arm == "baseline"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nr-cross removed", "was made with --nr-cross none: --nr-cross removed contradicts"),
        ("--nr-from-scratch", "was made without --nr-from-scratch: --nr-from-scratch contradicts"),
        ("--nr-flops", "was made without --nr-flops: --nr-flops contradicts"),
        ("--nr-round-to 4", "was made with --nr-round-to 1: --nr-round-to 4 contradicts"),
        ("--nr-bn-target 0.5", "was made with --nr-bn-target 0.7: --nr-bn-target 0.5 contradicts"),
        ("--nr-target 1", "was made with --nr-target 0.6: --nr-target 1 contradicts"),
        ("--nr-target 0.5", "was made with --nr-target 0.6: --nr-target 0.5 contradicts"),
    ],
)
def test_a_flag_that_contradicts_what_has_been_done_is_refused(straight, tmp_path, flags, words):
    done = straight("--nr-cross none --nr-bn-target 0.7 --nr-compress-only")
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        resume(tmp_path, flags)
    assert str(caught.value) == f"{tmp_path / LAST}: {words} that"
    assert contents(tmp_path) == before
    assert resume(tmp_path, "-e") == 0


@pytest.mark.parametrize(
    "flags", ["--nr-target 0.6", "--nr-bn-target 0.7", "--nr-rounds 2", "--nr-compress-only"]
)
def test_plain_training_is_not_called_otherwise(tmp_path, flags):
    go(tmp_path, f"{PLAIN} --epochs 1")
    with pytest.raises(InputError, match=f"was made with --nr-target 1: {flags} contradicts"):
        resume_untargeted(tmp_path, flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--manualSeed 2", "was trained with manualSeed 1, but the flags say 2"),
        ("-d cifar100", "was trained with dataset cifar10, but the flags say cifar100"),
        ("--subset 100", "was trained with subset None, but the flags say 100"),
        ("--depth 14", "but the flags say"),
        ("--width-mult 0.5", "but the flags say"),
        ("-a densenet --depth 10", "but the flags say"),
    ],
)
def test_another_run_is_refused_in_one_line(tmp_path, flags, words):
    go(tmp_path, f"{PLAIN} --epochs 1")
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        resume(tmp_path, f"{PLAIN} {flags}")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / LAST}: ") and words in line
    assert contents(tmp_path) == before


def test_another_batch_size_is_refused_inside_an_epoch_only(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Stopped):
            go(tmp_path, PLAIN)
    with pytest.raises(InputError, match="stands inside an epoch, so --train-batch cannot change"):
        resume(tmp_path, f"{PLAIN} --train-batch 12")
    resume(tmp_path, f"{PLAIN} --epochs 1")
    assert resume(tmp_path, f"{PLAIN} --epochs 2 --train-batch 12") == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", {"phase": "train", "seed": 1, "unknown": 1}),
        ("run", {}),
        ("run", None),
        ("optimizer", None),
        ("optimizer", {"state": None}),
        ("rng", None),
        ("rng", [None]),
        ("rng", [{"python": 1}]),
    ],
)
def test_a_state_that_cannot_be_restored_is_refused_in_one_line(tmp_path, key, value):
    go(tmp_path, f"{PLAIN} --epochs 1")
    checkpoint.save(tmp_path / LAST, checkpoint.read(tmp_path / LAST) | {key: value})
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        resume(tmp_path, PLAIN)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / LAST}: its state cannot be restored: ")
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    data = bytearray((tmp_path / LAST).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / LAST).write_bytes(data)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        resume(tmp_path, PLAIN)
    assert contents(tmp_path) == before


def test_auto_without_any_that_can_be_read_is_refused(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 2")
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"rubbish")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=PREVIOUS):
        resume(tmp_path, PLAIN)
    assert contents(tmp_path) == before

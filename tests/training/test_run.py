"""training.run, driven by cifar.main in this process on 24 random images: phases, clocks, files.

Channels do not die in a few batches, so a test says after which epoch half of them do. An epoch
is 3 training and 2 test batches.
"""

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import cifar
import imagenet
import nr
from tests.helpers import form, kill, prunable, same_tensors, widths
from tests.running import save_unrendered
from utils.data import batches
from utils.data.images import ImageSet
from utils.errors import InputError
from utils.machine import seeding
from utils.report.runs import read_run
from utils.shown import plots
from utils.shown.log import read_log
from utils.shown.meters import Figures
from utils.training import checkpoint, engine, folder, lock, phases, script, trainer
from utils.training import run as runs
from utils.training.run import Run, RunState
from utils.training.signals import SIGNALS, Stopped

NETWORK = "-a resnet --depth 8 --width-mult 0.25"  # half of its prunable channels dead: 0.541
SEARCH = f"{NETWORK} --nr-target 0.6 --nr-sparsity 0.001 --nr-max-epochs 5 --schedule 1 2"
FLAGS = f"{SEARCH} --epochs 3 --train-batch 8 --test-batch 5 --manualSeed 1 -j 0"
PLAIN = "--nr-target 1"
LAST, PREVIOUS, BEST = "checkpoint.pth.tar", "checkpoint.prev.pth.tar", "model_best.pth.tar"
BEFORE, AFTER = "NR_resnet_before_0.6.pth.tar", "NR_resnet_0.6.pth.tar"
CLASSES = tuple("abcdefghij")
SIDE = 8  # pixels
BATCHES = 5  # of an epoch: 3 to train on and 2 to test on


@pytest.fixture(autouse=True)
def handlers():
    """Put the signal handlers back that every run replaces."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """No pictures, which take longer than the training; returns how to have them, unrendered."""
    with monkeypatch.context() as patch:
        for name in ("curves", "scales", "utilization", "widths"):
            patch.setattr(plots, name, lambda *_: None)
        monkeypatch.setattr(Figure, "savefig", save_unrendered)
        yield patch.undo


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """24 training and 10 test images, small ones, in the place of the data sets."""
    monkeypatch.setattr(batches, "IMAGE_SIZE", SIDE)
    generator = torch.Generator().manual_seed(0)

    def made(count: int) -> ImageSet:
        images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return ImageSet(images, torch.arange(count) % 10, CLASSES)

    sets = made(24), made(10)
    monkeypatch.setattr(cifar, "load_cifar", lambda *_, **__: sets)
    return sets


@pytest.fixture
def epochs(monkeypatch):
    """What every training epoch was given; ``dead_after``: half of the channels die in it, and
    two of three in each of ``dead_later``.
    """
    seen, train_epoch = SimpleNamespace(dead_after=1, dead_later=(6,), rows=[]), trainer.train_epoch

    def train(model, batches, epoch, optimizer, *rest):
        seen.rows.append((epoch, optimizer.param_groups[0]["lr"], optimizer.sparsity))
        sums = train_epoch(model, batches, epoch, optimizer, *rest)
        if epoch in (seen.dead_after, *seen.dead_later):
            share = 1 / 2 if epoch == seen.dead_after else 2 / 3
            widths = {name: layer.unit.out_channels[0] for name, layer in prunable(model).items()}
            kill(model, {name: slice(int(share * width)) for name, width in widths.items()})
        return sums

    monkeypatch.setattr(trainer, "train_epoch", train)
    return seen


@pytest.fixture(scope="module")
def made_once() -> dict[str, Path]:
    """The folders of ``straight`` by their flags."""
    return {}


@pytest.fixture
def straight(epochs, made_once, tmp_path_factory):
    """Gives the folder of the whole run with these flags; it is not to be written to."""

    def folder(flags: str = "") -> Path:
        if flags not in made_once:
            made_once[flags] = tmp_path_factory.mktemp("straight")
            go(made_once[flags], flags)
            epochs.rows.clear()
        return made_once[flags]

    return folder


@pytest.fixture
def rescalings(monkeypatch):
    """The targets of every call of nr.rescale."""
    targets, rescale = [], nr.rescale

    def counted(model, target):
        targets.append(target)
        rescale(model, target)

    monkeypatch.setattr(nr, "rescale", counted)
    return targets


@pytest.fixture
def accuracies(monkeypatch):
    """Let the evaluations give these top-1 accuracies."""

    def script(*values: float) -> None:
        left = iter(values)
        monkeypatch.setattr(trainer, "evaluate", lambda *_: Figures(1.0, next(left), 100.0, 10))

    return script


def go(folder: Path, flags: str = "") -> int:
    return cifar.main([*FLAGS.split(), "-c", str(folder), *flags.split()])


def resume(folder: Path, flags: str = "", path: str = "auto") -> int:
    return go(folder, f"--resume {path} {flags}")


def made(folder: Path, flags: str = "") -> Run:
    """The Run that the script would work with."""
    args, keywords = cifar.parse([*FLAGS.split(), "-c", str(folder), *flags.split()])
    spec = {"family": "cifar", "arch": args.arch, "options": keywords | {"num_classes": 10}}
    where = script.open_folder(args)
    return Run(args, spec, [torch.device("cpu")], where, args.nr_sparsity, CLASSES)


def interrupt(monkeypatch, after: int, signum: int = signal.SIGTERM) -> None:
    """Let a signal come in the batch that is number ``after`` from now on."""
    done, batch_sums = 0, engine.batch_sums

    def counted(*arguments):
        nonlocal done
        done += 1
        if done == after:
            os.kill(os.getpid(), signum)
        return batch_sums(*arguments)

    monkeypatch.setattr(engine, "batch_sums", counted)


def column(folder: Path, name: str) -> list:
    return [row[name] for row in read_log(folder / "log.txt")]


def state_in(folder: Path, name: str = LAST) -> RunState:
    return RunState(**checkpoint.read(folder / name)["run"])


def names(folder: Path) -> list[str]:
    """All but the lock: a run that has raised lives as long as its error does."""
    return sorted(path.name for path in folder.iterdir() if path.name != lock.NAME)


def contents(folder: Path) -> dict[str, bytes]:
    """As ``names``, without folders."""
    paths = [folder / name for name in names(folder)]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def without_times(payload: dict) -> dict:
    """The state of a run without the seconds it took."""
    rows = [{k: v for k, v in row.items() if k != "Seconds"} for row in payload["run"]["rows"]]
    return payload["run"] | {"rows": rows, "seconds": None}


def same(value: object, other: object) -> bool:
    """Equal, bit for bit, tensors anywhere in them included."""
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(v, other[k]) for k, v in value.items())
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other


def assert_same_end(folder: Path, other: Path) -> None:
    """Two runs stand at the same point: state, weights, momentum and random streams."""
    one, two = checkpoint.read(folder / LAST), checkpoint.read(other / LAST)
    assert without_times(one) == without_times(two)
    for key in ("state_dict", "optimizer", "structure", "rng", "partial"):
        assert same(one[key], two[key]), key


# Phases and clocks.


def test_two_phases_row_by_row(epochs, tmp_path):
    """λ and the schedule of the search end with it; both clocks of the train phase begin at 0."""
    assert go(tmp_path) == 0
    assert column(tmp_path, "Phase") == ["search"] * 2 + ["train"] * 3
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.1, 0.01, 0.001]
    assert column(tmp_path, "Sparsity") == [0.001, 0.001, 0, 0, 0]
    usage = column(tmp_path, "Utilization")
    assert usage[0] == 1 and usage[1] < 0.6 < usage[2]
    params = column(tmp_path, "Params")
    assert params[0] == params[1] and len(set(params[2:])) == 1
    assert [row[0] for row in epochs.rows] == [0, 1, 2, 3, 4]
    assert [row[1] for row in epochs.rows] == pytest.approx([0.1, 0.01, 0.1, 0.01, 0.001])
    assert [row[2] for row in epochs.rows] == [0.001, 0.001, 0, 0, 0]


@pytest.mark.parametrize("dead_after", [0, 1, 3])
def test_the_train_phase_has_exactly_epochs_after_a_search_of_any_length(
    epochs, tmp_path, dead_after
):
    epochs.dead_after = dead_after
    go(tmp_path)
    search = dead_after + 1
    assert column(tmp_path, "Phase") == ["search"] * search + ["train"] * 3
    assert column(tmp_path, "Learning Rate")[search:] == [0.1, 0.01, 0.001]
    state = state_in(tmp_path)
    assert (state.epoch, state.search_epochs, state.phase) == (search + 3, search, "train")


def test_the_epochs_on_the_screen_count_from_the_start_of_the_phase(epochs, tmp_path, capsys):
    go(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Epoch:" in line]
    assert lines == [
        "Epoch: [1 | 5] LR: 0.1 (search)",
        "Epoch: [2 | 5] LR: 0.01 (search)",
        "Epoch: [1 | 3] LR: 0.1 (train)",
        "Epoch: [2 | 3] LR: 0.01 (train)",
        "Epoch: [3 | 3] LR: 0.001 (train)",
    ]


@pytest.mark.parametrize("target", ["1", "0.999"])
def test_plain_training_knows_no_search(epochs, tmp_path, target):
    assert go(tmp_path, f"--nr-target {target}") == 0
    assert column(tmp_path, "Phase") == ["train"] * 3
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.001]
    assert column(tmp_path, "Sparsity") == [0, 0, 0]
    assert [row[2] for row in epochs.rows] == [0, 0, 0]
    assert not any(name.startswith("NR_") for name in names(tmp_path))
    assert nr.load(tmp_path / LAST).streams == 1


def test_start_epoch_is_the_number_of_the_first_epoch(epochs, tmp_path):
    go(tmp_path, f"{PLAIN} --start-epoch 1")
    assert [row[:2] for row in epochs.rows] == [(1, pytest.approx(0.01)), (2, pytest.approx(1e-3))]
    assert state_in(tmp_path).epoch == 3


def test_the_optimizer_of_the_train_phase_is_fresh(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    assert checkpoint.read(tmp_path / BEFORE)["optimizer"]["state"] != {}
    for name in (AFTER, LAST):
        assert checkpoint.read(tmp_path / name)["optimizer"]["state"] == {}


def test_streams_and_structure_after_rejuvenation(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    assert nr.load(tmp_path / BEFORE).streams == 1
    assert nr.load(tmp_path / AFTER).streams == 2
    assert form(checkpoint.read(tmp_path / AFTER)["structure"]) == "removed"
    widths = {name: row for name, *row in state_in(tmp_path).widths}
    before, survived, after = widths["features.stage3.0.branch.0"]
    assert (before, survived) == (16, 8) and after > 8


def test_from_scratch_has_one_stream_of_the_new_widths(epochs, tmp_path):
    go(tmp_path / "nr", "--nr-compress-only")
    go(tmp_path / "fs", "--nr-from-scratch --nr-compress-only")
    rebuilt, fresh = (checkpoint.read(tmp_path / name / AFTER) for name in ("nr", "fs"))
    assert form(fresh["structure"]) == "plain"
    sums = {name: [sum(width)] for name, width in widths(rebuilt["structure"]).items()}
    assert widths(fresh["structure"]) == sums
    assert nr.load(tmp_path / "fs" / AFTER).streams == 1


def test_widths_are_rounded_where_the_flag_asks_for_it(epochs, tmp_path):
    """Survivors of 4, 8 and 16 channels, half of them dead: 4, 4 and 8 in multiples of 4."""
    go(tmp_path, "--nr-round-to 4 --nr-compress-only")
    widths = {name: row for name, *row in state_in(tmp_path).widths}
    survived = [widths[f"features.stage{stage}.0.branch.0"][1] for stage in (1, 2, 3)]
    assert survived == [4, 4, 8]
    assert all(after % 4 == 0 for *_, after in widths.values())


def test_imagenet_rounds_widths_too(epochs, tmp_path):
    network = "-a resnet18_nr --width-mult 0.125 --synthetic --subset 20 --image-size 32 -j 0"
    search = "--nr-target 0.8 --train-batch 10 --manualSeed 1 --nr-round-to 4 --nr-compress-only"
    assert imagenet.main([*f"{network} {search}".split(), "-c", str(tmp_path)]) == 0
    rows = state_in(tmp_path).widths
    assert len(rows) == 20 and all(after % 4 == 0 for *_, after in rows)


# The best accuracy.


def test_the_best_accuracy_is_that_of_the_train_phase(epochs, accuracies, tmp_path, capsys):
    accuracies(90, 95, 10, 30, 20)
    go(tmp_path)
    assert column(tmp_path, "Valid Acc.") == [90, 95, 10, 30, 20]
    best, last = (checkpoint.read(tmp_path / name) for name in (BEST, LAST))
    assert (best["epoch"], best["acc"], best["best_acc"]) == (4, 30, 30)
    assert (last["epoch"], last["acc"], last["best_acc"]) == (5, 20, 30)
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 30.00"


def test_no_best_model_in_the_search_phase(epochs, accuracies, tmp_path):
    accuracies(90, 95)
    go(tmp_path, "--nr-compress-only")
    assert not (tmp_path / BEST).exists()
    assert state_in(tmp_path).best_acc == 0


def test_an_equal_accuracy_does_not_replace_the_best_model(accuracies, tmp_path):
    accuracies(30, 30, 30)
    go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1


def test_an_accuracy_of_zero_is_the_best_of_a_run_that_learns_nothing(accuracies, tmp_path):
    accuracies(0, 0, 0)
    go(tmp_path, PLAIN)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"]) == (1, 0)


def test_the_best_model_comes_along_to_another_folder(accuracies, tmp_path):
    accuracies(30, 20, 25, 28)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    resume(tmp_path / "b", f"{PLAIN} --epochs 4", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 1
    assert state_in(tmp_path / "b").best_acc == 30


def test_where_the_best_model_is_lost_the_best_that_follows_is_kept(accuracies, tmp_path, capsys):
    accuracies(30, 20, 22, 25, 23)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    (tmp_path / "a" / BEST).unlink()
    resume(tmp_path / "b", f"{PLAIN} --epochs 5", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 4
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 25.00"


def test_a_finished_phase_in_a_new_folder_has_a_best_model(accuracies, tmp_path):
    accuracies(30, 20)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    (tmp_path / "a" / BEST).unlink()
    resume(tmp_path / "b", f"{PLAIN} --epochs 2", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 2


def test_the_best_model_survives_a_resume(accuracies, tmp_path):
    accuracies(30, 20, 25, 40)
    go(tmp_path, f"{PLAIN} --epochs 2")
    resume(tmp_path, f"{PLAIN} --epochs 3")
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1
    resume(tmp_path, f"{PLAIN} --epochs 4")
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 4


# Files.


def test_the_files_after_each_stage(epochs, accuracies, pictures, tmp_path):
    pictures()
    accuracies(10, 10, 10, 10, 10)
    always = [LAST, "curves.png", "log.txt", "run.json", "scales.png", "utilization.png"]
    assert go(tmp_path, "--nr-max-epochs 1") == 3
    assert names(tmp_path) == sorted(always)
    assert resume(tmp_path, "--nr-compress-only") == 0
    rebuilt = [*always, PREVIOUS, BEFORE, AFTER, "widths.png"]
    assert names(tmp_path) == sorted(rebuilt)
    assert resume(tmp_path) == 0
    assert names(tmp_path) == sorted([*rebuilt, BEST])


@pytest.mark.parametrize(
    ("share", "curves", "usage"),
    [(1e9, [1, 2, 2, 3, 4, 5], [1, 2, 2]), (0, [1, 2, 2, 5], [1, 2, 2])],
)
def test_short_epochs_are_not_slowed_by_pictures(
    share, curves, usage, epochs, pictures, monkeypatch, tmp_path
):
    """After every epoch if that costs little; else the first, and where a phase ends."""
    pictures()  # first, so that what is patched here is put back to what it was
    drawn = {"curves": [], "utilization": []}
    for name in ("scales", "widths"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    for name, lengths in drawn.items():

        def draw(rows, path, lengths=lengths):
            lengths.append(len(rows))
            path.touch()

        monkeypatch.setattr(plots, name, draw)
    monkeypatch.setattr("utils.training.pictures.DRAWING_SHARE", share)
    go(tmp_path, "--epochs 3")
    assert drawn == {"curves": curves, "utilization": usage}
    resume(tmp_path, "--epochs 4")  # all of them anew: the process before may have been killed
    assert drawn == {"curves": [*curves, 6], "utilization": [*usage, 2]}


# Saving beside the training.


@pytest.fixture
def slowly(monkeypatch):
    """Let every checkpoint wait for the returned event, and be written a while after it."""
    event, save = threading.Event(), checkpoint.save

    def slow(*arguments) -> None:
        assert event.wait(60), "the run waits for its checkpoint"
        time.sleep(0.05)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", slow)
        yield event
        event.set()


def test_the_next_epoch_trains_while_the_last_one_is_saved(slowly, monkeypatch, tmp_path):
    """Up to the end of its training: then the run asks for the best, or saves again."""
    batch_sums, done = engine.batch_sums, []

    def counted(*arguments):
        done.append((tmp_path / LAST).exists())
        if len(done) == BATCHES + 3:
            slowly.set()
        return batch_sums(*arguments)

    monkeypatch.setattr(engine, "batch_sums", counted)
    go(tmp_path, f"{PLAIN} --epochs 2")
    assert not any(done[: BATCHES + 3])
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 2
    assert len(read_log(tmp_path / "log.txt")) == 2


def test_the_best_is_looked_for_when_what_is_being_saved_is_there(
    slowly, accuracies, monkeypatch, tmp_path
):
    """Else a lost best would be assumed, and the next network kept in its place."""
    has_best = folder.RunFolder.has_best

    def asked(run_folder) -> bool:
        slowly.set()
        found = has_best(run_folder)
        slowly.clear()
        return found

    monkeypatch.setattr(folder.RunFolder, "has_best", asked)
    accuracies(30, 20, 25)
    go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 3


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_disk_that_is_full_ends_the_run_at_the_next_save(
    epochs, monkeypatch, tmp_path, capsys, epoch
):
    """What was there before stays whole. At the last epoch, it is the end that says so."""
    save_last = checkpoint.save_last

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(where: Path, payload: dict, best: bool) -> None:
        if payload["epoch"] == epoch:
            monkeypatch.setattr(os, "fsync", full)
        save_last(where, payload, best)

    monkeypatch.setattr(checkpoint, "save_last", save)
    assert script.exit_status(lambda: go(tmp_path, f"{PLAIN} --epochs 3")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(".pth.tar: could not be written: No space left on device")
    assert len(epochs.rows) == min(epoch + 1, 3)
    assert not list(tmp_path.glob(".*.tmp"))
    assert (tmp_path / LAST).exists() == (epoch > 1)
    if epoch > 1:
        assert checkpoint.read(tmp_path / LAST)["epoch"] == epoch - 1


def test_a_loss_that_is_not_finite_leaves_the_epoch_before_it(slowly, monkeypatch, tmp_path):
    """The run ends while that is being written."""
    train_epoch = trainer.train_epoch

    def train(model, batches, epoch, *rest):
        if epoch == 1:
            slowly.set()
            raise InputError("the loss is not finite")
        return train_epoch(model, batches, epoch, *rest)

    monkeypatch.setattr(trainer, "train_epoch", train)
    with pytest.raises(InputError, match=r"^the loss is not finite$"):
        go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / LAST)["epoch"] == 1
    assert len(read_log(tmp_path / "log.txt")) == 1


def test_every_other_end_waits_for_what_is_being_saved(slowly, epochs, monkeypatch, tmp_path):
    """A search that gives up, one that only compresses, and a signal."""
    slowly.set()
    assert go(tmp_path / "a", "--nr-max-epochs 1") == script.GAVE_UP
    assert checkpoint.read(tmp_path / "a" / LAST)["epoch"] == 1
    assert go(tmp_path / "b", "--nr-compress-only") == 0
    assert state_in(tmp_path / "b").phase == "train"
    assert state_in(tmp_path / "b", AFTER) == state_in(tmp_path / "b")
    interrupt(monkeypatch, 7)
    with pytest.raises(Stopped) as stopped:
        go(tmp_path / "c")
    assert stopped.value.saved
    assert len(checkpoint.read(tmp_path / "c" / LAST)["partial"]) == 2


def test_what_is_in_the_two_files_of_rejuvenation(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    before, after = (checkpoint.read(tmp_path / name) for name in (BEFORE, AFTER))
    assert (before["run"]["phase"], after["run"]["phase"]) == ("search", "train")
    assert (before["run"]["search_epochs"], after["run"]["search_epochs"]) == (0, 2)
    assert (before["run"]["sparsity"], after["run"]["sparsity"]) == (0.001, 0.0)
    assert before["epoch"] == after["epoch"] == 2
    assert before["run"]["utilization"] == after["run"]["utilization"] <= 0.6
    assert same(after["state_dict"], checkpoint.read(tmp_path / LAST)["state_dict"])


def test_the_checkpoint_before_the_last_is_kept(tmp_path):
    go(tmp_path, PLAIN)
    assert [checkpoint.read(tmp_path / name)["epoch"] for name in (PREVIOUS, LAST)] == [2, 3]


def test_plain_types_only(epochs, tmp_path):
    """torch.load(weights_only=True) reads every file of a run, with upstream's keys in it."""
    go(tmp_path)
    paths = list(tmp_path.glob("*.pth.tar"))
    assert len(paths) == 5
    for path in paths:
        payload = torch.load(path, weights_only=True)
        assert {"epoch", "arch", "state_dict", "acc", "best_acc", "optimizer"} <= payload.keys()
        assert not any(name.startswith("module.") for name in payload["state_dict"])


def test_a_fresh_run_puts_an_earlier_one_aside(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "curves.png").write_text("a picture")
    first = contents(tmp_path)
    go(tmp_path, f"{PLAIN} --epochs 1 --manualSeed 2")
    second = contents(tmp_path)
    assert contents(tmp_path / "earlier-1") | {"notes.txt": b"mine"} == first
    assert second["notes.txt"] == b"mine" and second[LAST] != first[LAST]
    go(tmp_path, f"{PLAIN} --epochs 1 --manualSeed 3")
    assert contents(tmp_path / "earlier-2") | {"notes.txt": b"mine"} == second
    assert contents(tmp_path / "earlier-1") | {"notes.txt": b"mine"} == first


def test_a_run_that_goes_on_from_elsewhere_puts_an_earlier_one_aside_too(tmp_path):
    go(tmp_path / "a", f"{PLAIN} --epochs 1")
    go(tmp_path / "b", f"{PLAIN} --epochs 1 --manualSeed 2")
    source, old = contents(tmp_path / "a"), contents(tmp_path / "b")
    resume(tmp_path / "b", f"{PLAIN} --epochs 2", path=str(tmp_path / "a" / LAST))
    assert contents(tmp_path / "a") == source
    assert contents(tmp_path / "b" / "earlier-1") == old
    assert state_in(tmp_path / "b").epoch == 2


def test_a_run_that_goes_on_in_its_folder_keeps_its_files(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    resume(tmp_path, f"{PLAIN} --epochs 2", path=str(tmp_path / LAST))
    assert not list(tmp_path.glob("earlier-*"))
    assert len(column(tmp_path, "Phase")) == 2


def test_the_second_step_given_twice_keeps_the_first_train_phase(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    resume(tmp_path, path=str(tmp_path / AFTER))
    assert not list(tmp_path.glob("earlier-*"))
    first = contents(tmp_path)
    resume(tmp_path, "--lr 0.2", path=str(tmp_path / AFTER))
    second, aside = contents(tmp_path), contents(tmp_path / "earlier-1")
    both = {BEFORE, AFTER}
    assert aside == {name: data for name, data in first.items() if name not in both}
    assert all(second[name] == first[name] for name in both) and second[LAST] != first[LAST]
    assert column(tmp_path, "Phase") == ["search"] * 2 + ["train"] * 3


def test_several_runs_from_one_search_in_one_folder(epochs, tmp_path):
    """From the file before rejuvenation, in the folder of a finished run."""
    go(tmp_path)
    first = contents(tmp_path)
    resume(tmp_path, "--nr-cross full", path=str(tmp_path / BEFORE))
    aside = contents(tmp_path / "earlier-1")
    assert aside == {name: data for name, data in first.items() if name != BEFORE}
    assert form(checkpoint.read(tmp_path / AFTER)["structure"]) == "full"


def test_a_folder_is_refused_before_the_data_is_loaded(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cifar, "load_cifar", None)
    with pytest.raises(InputError, match="is a file, and has to be a folder"):
        go(tmp_path / "file", PLAIN)


def test_an_evaluation_needs_no_folder_of_its_own(tmp_path, monkeypatch):
    """Not even where another run lives in it."""
    go(tmp_path, f"{PLAIN} --epochs 1")
    monkeypatch.setattr(lock, "hold", None)
    before = names(tmp_path)
    assert resume(tmp_path, f"{PLAIN} -e") == 0
    assert names(tmp_path) == before


def test_a_number_of_an_earlier_run_is_not_used_twice(tmp_path):
    """The user has deleted earlier-1 and kept earlier-2."""
    (tmp_path / "earlier-2").mkdir()
    go(tmp_path, f"{PLAIN} --epochs 1")
    first = contents(tmp_path)
    go(tmp_path, f"{PLAIN} --epochs 1")
    assert first in [contents(folder) for folder in tmp_path.glob("earlier-*")]


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_a_checkpoint_folder_that_cannot_be_made_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^--checkpoint {tmp_path / folder}: "):
        go(tmp_path / folder, PLAIN)


def test_a_loss_that_is_not_finite_saves_nothing(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"not finite at epoch 2, batch \d, learning rate 1e\+29"):
        resume(tmp_path, f"{PLAIN} --lr 1e30")
    assert contents(tmp_path) == before


# Giving up.


def test_the_search_gives_up_with_status_3_and_one_line(epochs, tmp_path, capsys):
    epochs.dead_after = None
    assert go(tmp_path, "--nr-max-epochs 2") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "after 2 epochs: utilization is 1.0000, the target 0.6" in line
    assert "--nr-sparsity" in line and str(tmp_path) in line
    assert state_in(tmp_path).phase == "search"
    assert names(tmp_path) == [PREVIOUS, LAST, "log.txt", "run.json"]


def test_the_search_gives_up_after_epochs_by_default():
    assert cifar.parse(["--epochs", "7"])[0].nr_max_epochs == 7


def test_a_search_says_what_its_penalty_does_and_what_helps(epochs, tmp_path, capsys):
    epochs.dead_after = None
    assert go(tmp_path, "--nr-max-epochs 2") == 3
    out, err = capsys.readouterr()
    assert out.count("| Penalty: a scale of 0.5 that nothing holds falls by 0.0033 only") == 1
    (line,) = err.splitlines()
    # Three steps at 0.1 and three at 0.01, of λ 1e-3 and momentum 0.9.
    assert "has fallen by 0.0033 only: a larger --nr-sparsity, a later --schedule or a" in line
    assert resume(tmp_path, "--nr-max-epochs 3 --nr-sparsity 0.04 --schedule 9") == 3
    out, err = capsys.readouterr()
    assert out.count("| Penalty: ") == 1
    warning, line = err.splitlines()
    assert warning.startswith("Warning: the penalty moves a scale by 0.04 a step (lr 0.1, λ 0.04)")
    assert "scales jump over 0 instead of dying: a smaller --nr-sparsity or --lr" in line


def test_a_search_that_gave_up_goes_on_with_more_epochs(epochs, straight, tmp_path):
    assert go(tmp_path / "a", "--nr-max-epochs 1") == 3
    assert resume(tmp_path / "a", "--nr-max-epochs 1") == 3
    assert len(epochs.rows) == 1
    assert resume(tmp_path / "a") == 0
    assert_same_end(tmp_path / "a", straight())


def test_a_target_of_1_never_rejuvenates_a_search_that_gave_up(epochs, tmp_path):
    """Section 5: at 0.999 or more no NR at all."""
    go(tmp_path, "--nr-max-epochs 1")
    with pytest.raises(InputError, match="--nr-target 1"):
        resume(tmp_path, PLAIN)
    assert not list(tmp_path.glob("NR_*"))


def test_a_target_reached_in_the_last_epoch_is_reached(epochs, tmp_path):
    assert go(tmp_path, "--nr-max-epochs 2 --nr-compress-only") == 0
    assert (tmp_path / AFTER).exists()


# Going on.


def test_every_field_of_the_state_is_restored(tmp_path):
    one = made(tmp_path)
    one.state = RunState(
        phase="train",
        seed=1,
        epoch=7,
        search_epochs=5,
        sparsity=0.125,
        utilization=0.5,
        acc=12.5,
        best_acc=25.0,
        rescaled=True,
        seconds=3.5,
        rows=[{"Phase": "search", "Params": 7, "Train Loss": 0.1}],
        scales=[[3, 4]],
        live=[{"features.stem.0": 0.5}, {}],
        widths=[["features.stem.0", 4, 4, 5]],
        round=2,
        round_start=3,
        past=[{"live": [], "scales": [], "widths": []}],
        macs=[8, 9],
    )
    fresh = RunState(phase="search", seed=0)
    for field in dataclasses.fields(RunState):
        assert getattr(one.state, field.name) != getattr(fresh, field.name), field.name
    one.trainer.partial = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    one.save(LAST)
    one.folder.writer.wait()
    two = made(tmp_path, "--resume auto --nr-rounds 2")
    assert two.state == one.state
    assert torch.equal(two.trainer.partial, one.trainer.partial)
    assert same_tensors(two.network.state_dict(), one.network.state_dict())


def test_momentum_is_restored_and_the_flags_rule_the_rest(epochs, tmp_path):
    go(tmp_path, "--nr-max-epochs 1")
    one = checkpoint.read(tmp_path / LAST)["optimizer"]
    two = made(tmp_path, "--resume auto --momentum 0.5 --wd 0.25 --lr 0.75").trainer.optimizer
    assert len(one["state"]) > 10
    assert same(one["state"], two.state_dict()["state"])
    group = two.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7, 12, 15, 25])
def test_a_run_interrupted_anywhere_ends_the_same(straight, monkeypatch, tmp_path, after):
    """In the first, a middle and the last batch of training and testing, in both phases."""
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            go(tmp_path / "a")
    saved = checkpoint.read(tmp_path / "a" / LAST)
    assert saved["epoch"] == (after - 1) // BATCHES
    assert len(saved["partial"]) == min((after - 1) % BATCHES + 1, 3)
    assert saved["run"]["seconds"] > 0
    assert resume(tmp_path / "a") == 0
    assert_same_end(tmp_path / "a", straight())
    assert checkpoint.read(tmp_path / "a" / LAST)["partial"] is None


def test_a_run_interrupted_twice_in_an_epoch_ends_the_same(straight, monkeypatch, tmp_path):
    for work in (go, resume):
        with monkeypatch.context() as patch:
            interrupt(patch, 1, signal.SIGINT)
            with pytest.raises(Stopped):
                work(tmp_path / "a")
    assert len(checkpoint.read(tmp_path / "a" / LAST)["partial"]) == 2
    resume(tmp_path / "a")
    assert_same_end(tmp_path / "a", straight())


def test_dropout_goes_on_where_it_was(monkeypatch, tmp_path):
    """The masks come from torch's generator, in the middle of its stream."""
    flags = f"{PLAIN} -a densenet --depth 10 --growthRate 2 --width-mult 1 --drop 0.5"
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Stopped):
            go(tmp_path / "a", flags)
    torch.manual_seed(123)
    resume(tmp_path / "a", flags)
    go(tmp_path / "b", flags)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", [BEFORE, AFTER])
def test_both_files_of_rejuvenation_lead_to_the_same_end(straight, tmp_path, name):
    resume(tmp_path / "b", path=str(straight() / name))
    assert_same_end(straight(), tmp_path / "b")


def test_a_finished_run_has_nothing_left_to_do(tmp_path, epochs):
    go(tmp_path, PLAIN)
    before = contents(tmp_path)
    assert resume(tmp_path, PLAIN) == 0
    assert len(epochs.rows) == 3
    assert contents(tmp_path) == before


def test_auto_without_a_checkpoint_is_a_fresh_run(tmp_path, capsys):
    assert resume(tmp_path, f"{PLAIN} --epochs 1") == 0
    assert f"==> Nothing to resume in {tmp_path}: a fresh run" in capsys.readouterr().out


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


def test_a_checkpoint_without_class_names_goes_on_and_gets_them(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    payload = checkpoint.read(tmp_path / LAST)
    del payload["classes"]
    checkpoint.save(tmp_path / LAST, payload)
    assert resume(tmp_path, f"{PLAIN} -e") == 0
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert checkpoint.read(tmp_path / LAST)["classes"] == list(CLASSES)


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


def test_a_checkpoint_without_known_data_goes_on_and_gets_them(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    payload = checkpoint.read(tmp_path / LAST)
    known = payload.pop("data")
    checkpoint.save(tmp_path / LAST, payload)
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert checkpoint.read(tmp_path / LAST)["data"] == known


@pytest.mark.parametrize(
    ("flags", "arm"),
    [
        ("--nr-cross none", "pruned only"),
        ("--nr-cross full", "NR, full"),
        ("--nr-from-scratch", "NR-FS"),
        ("--nr-flops", "NR-CR, by FLOPs"),
        ("--nr-round-to 4", "NR-CR, multiples of 4"),
        ("--nr-bn-target 0.7", "NR-CR + NR-BR 0.7"),
    ],
)
def test_a_resume_is_named_by_what_has_been_done_to_its_network(epochs, tmp_path, flags, arm):
    go(tmp_path / "p", f"{flags} --nr-compress-only")
    assert resume(tmp_path / "q", "--epochs 1", path=str(tmp_path / "p" / AFTER)) == 0
    assert read_run(tmp_path / "q").arm == arm
    assert resume(tmp_path / "q", "--epochs 2") == 0
    assert read_run(tmp_path / "q").arm == arm
    assert resume(tmp_path / "q", f"{flags} --epochs 2") == 0  # as it was


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


def test_the_next_round_is_rejuvenated_as_the_first(epochs, tmp_path):
    go(tmp_path / "p", "--nr-cross full --nr-compress-only")
    resume(tmp_path / "q", TWO, path=str(tmp_path / "p" / AFTER))
    assert form(checkpoint.read(tmp_path / "q" / AFTER2)["structure"]) == "full"


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


def without_seed(flags: str) -> list[str]:
    words = [*FLAGS.split(), *flags.split()]
    at = words.index("--manualSeed")
    return words[:at] + words[at + 2 :]


def test_a_run_goes_on_without_naming_its_seed(tmp_path):
    go(tmp_path / "a", f"{PLAIN} --epochs 1")
    assert cifar.main(without_seed(f"{PLAIN} -c {tmp_path / 'a'} --resume auto")) == 0
    go(tmp_path / "b", PLAIN)
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_a_run_goes_on_when_its_drawn_seed_is_named(tmp_path):
    """The screen has said `==> Seed: N (--manualSeed)`."""
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --epochs 1"))
    seed = state_in(tmp_path).seed
    assert resume(tmp_path, f"{PLAIN} --manualSeed {seed}") == 0


def test_a_run_goes_on_when_its_seed_is_named_again_after_a_resume_without_it(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --resume auto --epochs 2"))
    assert resume(tmp_path, PLAIN) == 0


def test_another_seed_is_refused_after_a_resume_without_one(tmp_path):
    """Now the flags of the checkpoint say None, but the run has the seed 1."""
    go(tmp_path, f"{PLAIN} --epochs 1")
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --resume auto --epochs 2"))
    with pytest.raises(InputError, match="trained with manualSeed 1, but the flags say 2"):
        resume(tmp_path, f"{PLAIN} --manualSeed 2")


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


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
def test_auto_goes_on_from_the_previous_one_when_the_last_is_damaged(damage, tmp_path, capsys):
    go(tmp_path / "straight", f"{PLAIN} --epochs 3")
    go(tmp_path, f"{PLAIN} --epochs 2")
    (tmp_path / LAST).write_bytes(damage)
    assert resume(tmp_path, f"{PLAIN} --epochs 3") == 0
    assert "Warning" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.damaged.pth.tar").read_bytes() == damage
    one, two = (checkpoint.read(folder / LAST) for folder in (tmp_path, tmp_path / "straight"))
    assert same_tensors(one["state_dict"], two["state_dict"])


def test_auto_goes_on_from_the_previous_one_when_the_last_is_gone(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 2")
    (tmp_path / LAST).unlink()
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert state_in(tmp_path).epoch == 2


def test_auto_without_any_that_can_be_read_is_refused(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 2")
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"rubbish")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=PREVIOUS):
        resume(tmp_path, PLAIN)
    assert contents(tmp_path) == before


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    tmp_path.joinpath(f".{LAST}.tmp").write_bytes(b"half")
    go(tmp_path, f"{PLAIN} --epochs 1")
    assert not list(tmp_path.glob(".*"))


# Seeds.


def initial(folder: Path, flags: str) -> dict:
    return made(folder, flags).network.state_dict()


def test_the_weights_are_a_function_of_the_seed(tmp_path):
    one, two, other = (
        initial(tmp_path / str(n), f"--manualSeed {seed}") for n, seed in enumerate((5, 5, 6))
    )
    assert same_tensors(one, two)
    assert not same_tensors(one, other)


def test_the_rejuvenated_weights_are_a_function_of_the_seed(epochs, monkeypatch, tmp_path):
    """Whatever has drawn random numbers before."""
    go(tmp_path / "a", "--nr-compress-only")
    evaluate = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *rest: (torch.rand(7), evaluate(*rest))[1])
    go(tmp_path / "b", "--nr-compress-only")
    one, two = (checkpoint.read(tmp_path / name / AFTER)["state_dict"] for name in "ab")
    assert same_tensors(one, two)
    go(tmp_path / "c", "--nr-compress-only --manualSeed 2")
    weight = "features.stage1.0.branch.0.convs.1.weight"  # of rejuvenated channels
    other = checkpoint.read(tmp_path / "c" / AFTER)["state_dict"]
    assert other[weight].shape != one[weight].shape or not torch.equal(other[weight], one[weight])


def test_a_drawn_seed_is_shown_and_repeats_the_run(tmp_path, capsys):
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path / 'a'} --epochs 1"))
    seed = state_in(tmp_path / "a").seed
    assert f"==> Seed: {seed} (--manualSeed)" in capsys.readouterr().out.splitlines()
    go(tmp_path / "b", f"{PLAIN} --epochs 1 --manualSeed {seed}")
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_drawn_seeds_differ(tmp_path):
    parsed = [cifar.parse(without_seed(f"-c {tmp_path / name}")) for name in "abc"]
    spec = {"family": "cifar", "arch": "resnet", "options": parsed[0][1]}
    runs = [
        Run(args, spec, [torch.device("cpu")], script.open_folder(args), 0, CLASSES)
        for args, _ in parsed
    ]
    assert len({run.state.seed for run in runs}) == 3


# Rescaling.


def test_rescaling_in_the_run_that_rejuvenates(epochs, rescalings, tmp_path):
    go(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == [0.7]
    assert state_in(tmp_path, BEFORE).rescaled is False
    assert state_in(tmp_path, AFTER).rescaled is True
    scales = [
        norm.weight.abs().min().item()
        for layer in prunable(nr.load(tmp_path / AFTER)).values()
        for norm in layer.unit.norms
    ]
    assert min(scales) >= 0.7 - 1e-6


@pytest.mark.parametrize("name", [AFTER, LAST])
def test_rescaling_when_going_on_from_a_checkpoint_that_has_not_had_it(
    straight, rescalings, tmp_path, name
):
    """The README's two steps, which must end as the one step does."""
    shutil.copytree(straight("--nr-compress-only"), tmp_path / "a")
    assert rescalings == []
    resume(tmp_path / "a", "--nr-bn-target 0.7", path=str(tmp_path / "a" / name))
    assert rescalings == [0.7]
    assert state_in(tmp_path / "a").rescaled is True
    assert_same_end(tmp_path / "a", straight("--nr-bn-target 0.7"))


@pytest.mark.parametrize("name", [AFTER, LAST])
def test_a_checkpoint_that_has_had_it_is_not_rescaled_again(epochs, rescalings, tmp_path, name):
    go(tmp_path, "--nr-compress-only --nr-bn-target 0.7")
    resume(tmp_path, "--nr-bn-target 0.7", path=str(tmp_path / name))
    assert rescalings == [0.7]


@pytest.mark.parametrize("after", [1, 4, 5, 7])
def test_an_interrupted_run_is_not_rescaled_again(
    straight, rescalings, monkeypatch, tmp_path, after
):
    shutil.copytree(straight("--nr-compress-only"), tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            resume(tmp_path, "--nr-bn-target 0.7", path=str(tmp_path / AFTER))
    resume(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == [0.7]


def test_a_train_phase_that_has_begun_is_not_rescaled(epochs, rescalings, tmp_path, capsys):
    go(tmp_path, "--epochs 1")
    resume(tmp_path, "--epochs 2 --nr-bn-target 0.7")
    assert rescalings == []
    assert "--nr-bn-target: the train phase has begun without it" in capsys.readouterr().out
    assert state_in(tmp_path).rescaled is False


def test_not_even_in_its_first_epoch(epochs, rescalings, monkeypatch, tmp_path, capsys):
    go(tmp_path, "--nr-compress-only")
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Stopped):
            resume(tmp_path)
    resume(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == []
    assert "--nr-bn-target: the train phase has begun without it" in capsys.readouterr().out


def test_nothing_is_rescaled_in_the_search(epochs, rescalings, tmp_path):
    assert go(tmp_path, "--nr-bn-target 0.7 --nr-max-epochs 1") == 3
    assert resume(tmp_path, "--nr-bn-target 0.7 --nr-max-epochs 1") == 3
    assert rescalings == []


# Rounds.

TWO = "--nr-rounds 2"
BEFORE2, AFTER2 = "NR_resnet_before_0.6_round2.pth.tar", "NR_resnet_0.6_round2.pth.tar"
ROUND = 5  # epochs of a round: two of the search, three of the train phase


def test_the_second_round_is_as_the_first(epochs, tmp_path, capsys):
    """λ is back, both clocks begin at 0 again, and what was searched is one plain network."""
    assert go(tmp_path, TWO) == 0
    assert column(tmp_path, "Phase") == (["search"] * 2 + ["train"] * 3) * 2
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.1, 0.01, 0.001] * 2
    assert column(tmp_path, "Sparsity") == [0.001, 0.001, 0, 0, 0] * 2
    assert [row[0] for row in epochs.rows] == list(range(10))
    assert [row[1] for row in epochs.rows] == pytest.approx([0.1, 0.01, 0.1, 0.01, 0.001] * 2)
    assert [row[2] for row in epochs.rows] == [0.001, 0.001, 0, 0, 0] * 2
    usage = column(tmp_path, "Utilization")
    assert usage[6] < 0.6 < usage[5] and usage[6] < usage[7]
    state = state_in(tmp_path)
    assert (state.round, state.round_start, state.search_epochs, state.epoch) == (2, 5, 2, 10)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Epoch:" in line]
    assert lines[1] == "Epoch: [2 | 5] LR: 0.01 (search)"
    assert lines[ROUND + 1] == "Epoch: [2 | 5] LR: 0.01 (search, round 2)"
    assert lines[-1] == "Epoch: [3 | 3] LR: 0.001 (train, round 2)"


def test_the_files_of_the_second_round(epochs, pictures, tmp_path):
    pictures()
    go(tmp_path, TWO)
    drawn = [f"{name}{end}.png" for name in ("scales", "utilization", "widths") for end in END]
    checkpoints = [LAST, PREVIOUS, BEST, BEFORE, AFTER, BEFORE2, AFTER2]
    assert names(tmp_path) == sorted([*checkpoints, *drawn, "curves.png", "log.txt", "run.json"])
    second = state_in(tmp_path)
    assert len(second.live) == len(second.scales) == 2  # this round's
    assert second.past[0]["widths"] == state_in(tmp_path, AFTER).widths != second.widths
    resume(tmp_path / "other", TWO, path=str(tmp_path / AFTER2))  # all pictures, elsewhere too
    assert {*drawn} <= {*names(tmp_path / "other")}


END = ("", "_round2")


@pytest.mark.parametrize(
    ("flags", "streams"),
    [("", 2), ("--nr-cross full", 2), ("--nr-cross none", 1), ("--nr-from-scratch", 1)],
)
def test_the_streams_are_merged_and_rejuvenated_again(epochs, tmp_path, flags, streams):
    go(tmp_path, f"{TWO} --nr-compress-only {flags}")
    first, merged, second = (nr.load(tmp_path / name) for name in (AFTER, BEFORE2, AFTER2))
    assert (first.streams, merged.streams, second.streams) == (streams, 1, streams)
    widths = {name: sum(layer.unit.out_channels) for name, layer in prunable(first).items()}
    assert widths == {n: layer.unit.out_channels[0] for n, layer in prunable(merged).items()}
    if streams == 2:
        survived = {name: layer.unit.out_channels[0] for name, layer in prunable(second).items()}
        assert survived == {name: width - int(2 / 3 * width) for name, width in widths.items()}


def test_the_optimizer_of_the_second_search_is_fresh(epochs, monkeypatch, tmp_path):
    momenta = []
    merge = nr.merge
    monkeypatch.setattr(nr, "merge", lambda network: momenta.append(None) or merge(network))
    used = trainer.Trainer.use

    def use(self, network):
        used(self, network)
        momenta.append(len(self.optimizer.state))

    monkeypatch.setattr(trainer.Trainer, "use", use)
    go(tmp_path, TWO)
    assert momenta == [0, 0, None, 0, 0]  # built, rejuvenated, merged, rejuvenated


@pytest.mark.parametrize("after", [26, 28, 33, 35, 36, 42, 50])
def test_a_run_interrupted_in_its_second_round_ends_the_same(
    straight, monkeypatch, tmp_path, after
):
    """In its search from batch 26 on, in its train phase from 36 on."""
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            go(tmp_path / "a", TWO)
    stopped = state_in(tmp_path / "a")
    assert (stopped.round, stopped.searching) == (2, after <= 35)
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))


def test_every_file_leads_to_the_same_end_of_the_second_round(straight, tmp_path):
    """Of a run that was to have one round first: flags may change."""
    shutil.copytree(straight(), tmp_path / "a")
    resume(tmp_path / "a", TWO)
    assert not list((tmp_path / "a").glob("earlier-*"))
    assert_same_end(tmp_path / "a", straight(TWO))
    for name in (BEFORE, AFTER, BEFORE2, AFTER2):
        resume(tmp_path / name, TWO, path=str(tmp_path / "a" / name))
        assert_same_end(tmp_path / name, straight(TWO))


def test_a_search_killed_before_its_first_save_is_merged_again(straight, monkeypatch, tmp_path):
    """Merging leaves no file, and needs none."""

    def killed(run):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(phases, "after_merging", killed)
        with pytest.raises(MemoryError):
            go(tmp_path / "a", TWO)
    assert state_in(tmp_path / "a").round == 1
    resume(tmp_path / "a", TWO)
    assert_same_end(tmp_path / "a", straight(TWO))


def test_the_best_model_is_that_of_all_train_phases(epochs, accuracies, tmp_path, capsys):
    accuracies(90, 95, 10, 30, 20, 99, 99, 25, 28, 29)
    go(tmp_path, TWO)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"]) == (4, 30)
    assert state_in(tmp_path).best_acc == 30
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 30.00"


def test_a_better_epoch_of_the_second_train_phase_is_the_best(epochs, accuracies, tmp_path):
    accuracies(90, 95, 10, 30, 20, 99, 99, 25, 31, 29)
    go(tmp_path, TWO)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"], best["run"]["round"]) == (9, 31, 2)


def test_compress_only_ends_after_the_last_rejuvenation(straight, tmp_path):
    assert go(tmp_path / "a", f"{TWO} --nr-compress-only") == 0
    assert column(tmp_path / "a", "Phase") == ["search"] * 2 + ["train"] * 3 + ["search"] * 2
    assert state_in(tmp_path / "a").phase == "train"
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))


@pytest.mark.parametrize("after", [None, 26, 36, 38])
def test_every_round_is_rescaled_once(epochs, rescalings, monkeypatch, tmp_path, after):
    """Interrupted in no batch, or in one of the second round."""
    flags = f"{TWO} --nr-bn-target 0.7"
    if after is not None:
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Stopped):
                go(tmp_path, flags)
        resume(tmp_path, flags)
    else:
        go(tmp_path, flags)
    assert rescalings == [0.7, 0.7]
    assert [state_in(tmp_path, name).rescaled for name in (BEFORE2, AFTER2)] == [False, True]


def test_every_search_has_its_epochs_before_it_gives_up(epochs, tmp_path, capsys):
    epochs.dead_later = ()
    assert go(tmp_path / "a", f"{TWO} --nr-max-epochs 2") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "Gave up the search of round 2 after 2 epochs: utilization is" in line
    assert column(tmp_path / "a", "Phase")[ROUND:] == ["search"] * 2
    epochs.dead_later = (8,)
    assert resume(tmp_path / "a", f"{TWO} --nr-max-epochs 5") == 0
    assert column(tmp_path / "a", "Phase")[ROUND:] == ["search"] * 4 + ["train"] * 3


def test_rejuvenated_weights_of_every_round_have_their_own_seed(epochs, monkeypatch, tmp_path):
    seeds = []

    def seeded(*parts):
        seeds.append(parts)
        seeding.seed_generators(*parts)

    for module in (runs, phases):
        monkeypatch.setattr(module, "seed_generators", seeded)
    go(tmp_path, f"{TWO} --nr-compress-only")
    first = [(1, seeding.NETWORK), (1, seeding.REJUVENATION)]
    assert seeds == [*first, (1, seeding.REJUVENATION, 2)]


def test_attention_has_no_further_round(epochs, tmp_path):
    go(tmp_path, "--nr-cross attention")
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        resume(tmp_path, TWO)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / LAST}: --nr-rounds 2: its attention cross-connections")
    assert contents(tmp_path) == before
    assert resume(tmp_path, f"{TWO} -e") == 0


def test_a_round_that_the_flags_forget_is_refused(epochs, tmp_path):
    go(tmp_path, f"{TWO} --nr-compress-only")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="stands in round 2, but --nr-rounds is 1"):
        resume(tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_from_before_there_were_rounds_goes_on(straight, tmp_path):
    shutil.copytree(straight(), tmp_path / "a")
    payload = checkpoint.read(tmp_path / "a" / LAST)
    for name in ("round", "round_start", "past", "macs"):
        del payload["run"][name]
    del payload["args"]["nr_rounds"]
    checkpoint.save(tmp_path / "a" / LAST, payload)
    path = str(tmp_path / "a" / LAST)
    assert resume(tmp_path / "elsewhere", TWO, path=path) == 0
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))
    assert_same_end(tmp_path / "elsewhere", straight(TWO))


def test_the_report_knows_rounds(straight, tmp_path):
    shutil.copytree(straight(), tmp_path / "one")
    found = read_run(straight(TWO))
    assert (found.arm, found.epochs) == ("NR-CR, 2 rounds", (2, 3, 2, 3))
    assert found.setting != read_run(tmp_path / "one").setting
    networks = [nr.load(straight(TWO) / name) for name in (BEFORE, AFTER, BEFORE2, AFTER2)]
    costs = [nr.count_macs(network, 32) for network in networks]
    assert len(set(costs)) == 4
    assert found.training_macs == sum(2 * a + 3 * b for a, b in (costs[:2], costs[2:]))
    assert found.params == nr.count_params(networks[-1])
    go(tmp_path / "b", f"{TWO} --nr-compress-only")
    with pytest.raises(InputError, match="unfinished: round 2 of 2, search at utilization 0"):
        read_run(tmp_path / "b")
    resume(tmp_path / "one", f"{TWO} --nr-compress-only")
    with pytest.raises(InputError, match="unfinished: round 2 of 2"):
        read_run(tmp_path / "one")


def test_imagenet_starts_every_search_with_the_first_sparsity(epochs, tmp_path):
    epochs.dead_later = (4,)
    network = "-a resnet18_nr --width-mult 0.125 --synthetic --subset 20 --image-size 32 -j 0"
    search = "--nr-target 0.8 --nr-sparsity-start 0.001 --nr-increase-step 0.001"
    flags = f"{network} {search} --nr-increase-thres 1 --train-batch 10 --manualSeed 1"
    flags += f" --epochs 1 --nr-max-epochs 5 --schedule 9 --nr-cross removed {TWO}"
    assert imagenet.main([*flags.split(), "-c", str(tmp_path)]) == 0
    assert column(tmp_path, "Phase") == ["search", "search", "train"] * 2
    assert column(tmp_path, "Sparsity") == [0.001, 0.002, 0] * 2


# Evaluating.


@pytest.mark.parametrize("name", [BEFORE, AFTER, LAST, "auto"])
def test_evaluation_of_a_checkpoint_changes_no_file(straight, data, tmp_path, capsys, name):
    shutil.copytree(straight(), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    path = name if name == "auto" else str(tmp_path / name)
    assert resume(tmp_path, "-e", path=path) == 0
    assert contents(tmp_path) == before
    ((images, labels),) = batches.TestBatches(data[1], 10)
    logits = nr.load(tmp_path / (LAST if name == "auto" else name))(images)
    right = (logits.sum(dim=1).argmax(dim=1) == labels).float().mean().item()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        f"Valid Loss: {engine.stream_loss(logits, labels):.4f} | Valid Acc.: {100 * right:.2f} | "
    )


def test_evaluation_makes_no_folder_and_takes_another_seed(tmp_path):
    go(tmp_path / "a", f"{PLAIN} --epochs 1")
    path = tmp_path / "a" / LAST
    assert resume(tmp_path / "none", "-e --manualSeed 9", path=str(path)) == 0
    assert not (tmp_path / "none").exists()


def test_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^-e --resume auto: there is no .*checkpoint\.pth\.tar"):
        resume(tmp_path, "-e")


def test_a_run_killed_between_checkpoint_and_log_is_whole_again(tmp_path, epochs):
    """log.txt and run.json follow the checkpoint: behind it, they are written again on resume."""
    go(tmp_path)
    log, description = (tmp_path / "log.txt").read_bytes(), (tmp_path / "run.json").read_text()
    (tmp_path / "log.txt").write_bytes(b"".join(log.splitlines(keepends=True)[:-1]))
    (tmp_path / "run.json").write_text("{}")
    resume(tmp_path)
    assert (tmp_path / "log.txt").read_bytes() == log
    structure = json.loads(description)["structure"]
    assert json.loads((tmp_path / "run.json").read_text())["structure"] == structure


def test_pruned_only_trains_the_live_channels_alone(tmp_path, epochs):
    """--nr-cross none: one stream of the live widths, trained, resumed and evaluated."""
    assert go(tmp_path, "--nr-cross none") == 0
    payload = checkpoint.read(tmp_path / LAST)
    path = tmp_path / BEFORE
    before = widths(checkpoint.read(path)["structure"])
    after = widths(payload["structure"])
    assert form(payload["structure"]) == "plain"
    half = {name: [before[name][0] - before[name][0] // 2] for name in prunable(nr.load(path))}
    assert half and after == before | half
    assert [row["Phase"] for row in payload["run"]["rows"]].count("train") == 3
    assert resume(tmp_path, "--nr-cross none --epochs 4") == 0
    assert resume(tmp_path, "--nr-cross none -e") == 0

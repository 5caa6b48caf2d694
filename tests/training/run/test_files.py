"""Which files a run leaves, and what it puts aside."""

import json

import pytest
import torch

import cifar
from tests.helpers import form
from tests.training.run.small_runs import (
    AFTER,
    BEFORE,
    BEST,
    LAST,
    PLAIN,
    PREVIOUS,
    column,
    contents,
    go,
    names,
    resume,
    same,
    state_in,
)
from utils.errors import InputError
from utils.shown import plots
from utils.training import checkpoint


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
    monkeypatch.setattr("utils.training.folder.DRAWING_SHARE", share)
    go(tmp_path, "--epochs 3")
    assert drawn == {"curves": curves, "utilization": usage}
    resume(tmp_path, "--epochs 4")  # all of them anew: the process before may have been killed
    assert drawn == {"curves": [*curves, 6], "utilization": [*usage, 2]}


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


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    tmp_path.joinpath(f".{LAST}.tmp").write_bytes(b"half")
    go(tmp_path, f"{PLAIN} --epochs 1")
    assert not list(tmp_path.glob(".*"))


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
